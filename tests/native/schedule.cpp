// Tells what the blocks of csrc/cuda/schedule.cuh do with counters: schedule BATCH GROUP STAGES ROWS COLUMNS BLOCKS
// INDEPENDENT, for test_schedule_cuda.py. Each item, what it waits for, and what it does when finished; then the end.
#include <schedule.cuh>

#include <cstdlib>
#include <vector>

using namespace lwrn_fast::cuda;

// All threads of a block, one after another; they meet nowhere, for values in shared memory are the first one's.
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
    for (const auto& [counter, value] : awaited) tell("poll", counter, value);
    awaited.clear();
    each_thread([&] { arrive(schedule, item); });
  }
  next_ticket(schedule);
  int place = 0;
  each_thread([&] { leave(schedule, &place); });
}
