// Prints the accesses of csrc/cuda/schedule.cuh to its counters, for test_schedule_cuda.py: for each item its waits and
// its arrival, then those of leave(). Usage: schedule BATCH GROUP STAGES ROWS COLUMNS BLOCKS INDEPENDENT.
#include <schedule.cuh>

#include <cstdlib>
#include <vector>

using namespace lwrn_fast::cuda;

// Run all threads of a block, one after another. They never meet: values in shared memory come from the first thread.
template <class Body>
static void each_thread(const Body& body) {
  for (current_thread = 0; current_thread < kThreads; ++current_thread) body();
}

int main(int count, char** arguments) {
  if (count != 8) return 2;
  int sizes[7];
  for (int i = 0; i < 7; ++i) sizes[i] = std::atoi(arguments[i + 1]);
  Schedule schedule = {nullptr, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6] != 0};
  std::vector<int> counters(static_cast<size_t>(counters_used(schedule)));
  schedule.counters = first_counter = counters.data();
  for (int ticket = 0; ticket < schedule.items(); ++ticket) {
    const Item item = locate(schedule, ticket);
    std::printf("item %d %d %d %d\n", item.stage, item.image, item.tile, item.block);
    each_thread([&] { await(schedule, item); });
    for (const auto& [counter, value] : awaited) record("poll", counter, value);
    awaited.clear();
    each_thread([&] { arrive(schedule, item); });
  }
  next_ticket(schedule);
  int smem_word = 0;
  each_thread([&] { leave(schedule, &smem_word); });
}
