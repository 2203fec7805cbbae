// Stacks that one thread of the operating system switches between. The sanitizers, where a program is built with one,
// know of them: to ThreadSanitizer each is a thread of its own, and a switch orders nothing.
#pragma once
#include <cstddef>

namespace emulator {

class Fiber {
 public:
  Fiber();                                     // the stack that the caller is on
  Fiber(void (*body)(void*), void* argument);  // one of its own; body never returns
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves this fiber, which must be the running one, for another.
  void switch_to(Fiber& other);
  // What release(object) does, on behalf of another fiber that will not run again.
  void release_for(Fiber& other, void* object);

 private:
  static void enter(void* fiber);

  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  char* mapped_ = nullptr;  // the lowest page of a stack may not be touched
  void* top_ = nullptr;     // where the registers of a fiber that does not run lie
  char* stack_ = nullptr;
  size_t bytes_ = 0;
  void *asan_ = nullptr, *tsan_ = nullptr;
};

// The caller's memory accesses before release(object) come before those of the thread or fiber that then calls
// acquire(object), says this to ThreadSanitizer.
void release(void* object);
void acquire(void* object);

}  // namespace emulator
