// Fibers: stacks that one thread of the operating system switches between. They are announced to the sanitizers: to
// ThreadSanitizer each fiber is a thread of its own, and a switch orders no memory access.
#pragma once
#include <cstddef>

namespace emulator {

class Fiber {
 public:
  Fiber();                                     // the stack of the caller
  Fiber(void (*body)(void*), void* argument);  // a new stack; body never returns
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Switch from this fiber, which must be the running one, to another.
  void switch_to(Fiber& other);
  // Call release(object) on behalf of another fiber, which will not run again.
  void release_for(Fiber& other, void* object);

 private:
  static void enter(void* fiber);

  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  char* mapped_ = nullptr;  // starts with the guard page
  void* top_ = nullptr;     // saved registers of a fiber that does not run
  char* stack_ = nullptr;
  size_t bytes_ = 0;
  void *asan_ = nullptr, *tsan_ = nullptr;
};

// Tell ThreadSanitizer that the caller's memory accesses before release(object) happen before those of the thread or
// fiber that then calls acquire(object).
void release(void* object);
void acquire(void* object);

}  // namespace emulator
