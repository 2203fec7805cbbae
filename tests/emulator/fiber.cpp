// Compiled without sanitizers even where the program has one: weak symbols tell at run time which one it has.
#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

extern "C" {
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* object);
__attribute__((weak)) void __tsan_release(void* object);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** save, const void* stack, size_t bytes);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* saved, const void** stack, size_t* bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* memory, size_t bytes);

// Save the callee-saved registers on the stack and the stack pointer in *save, and continue on another stack.
void emulator_swap(void** save, void* to);
// The entry of a new stack: calls the function in the first saved register with the argument in the second.
void emulator_begin();
}

namespace emulator {
namespace {

// Bytes of a stack.
constexpr size_t kStackBytes = 128 * 1024;
// Bytes of the guard below a stack: the largest page size.
constexpr size_t kPage = 64 * 1024;
// __tsan_switch_to_fiber_no_sync.
constexpr unsigned kNoOrder = 1;

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_swap, emulator_begin
.type emulator_swap, @function
emulator_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.type emulator_begin, @function
emulator_begin:
  movq %r14, %rdi
  callq *%r15
  ud2
)");
// Words of a saved context, and the indices of the function, its argument and the return address.
constexpr int kSaved = 7, kFunction = 0, kArgument = 1, kReturn = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_swap, emulator_begin
.type emulator_swap, %function
emulator_swap:
  stp x19, x20, [sp, #-160]!
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x19, x20, [sp], #160
  ret
.type emulator_begin, %function
emulator_begin:
  mov x0, x20
  blr x19
  brk #1
)");
constexpr int kSaved = 20, kFunction = 0, kArgument = 1, kReturn = 11;
#endif

#if defined(__x86_64__) || defined(__aarch64__)
void* new_stack(char* stack, size_t bytes, void (*function)(void*), void* argument) {
  auto* top = reinterpret_cast<uint64_t*>(stack + bytes) - kSaved;
  top[kFunction] = reinterpret_cast<uint64_t>(function);
  top[kArgument] = reinterpret_cast<uint64_t>(argument);
  top[kReturn] = reinterpret_cast<uint64_t>(&emulator_begin);
  return top;
}
#else  // slow: each switch makes system calls
void call(unsigned f_high, unsigned f_low, unsigned a_high, unsigned a_low) {
  const uint64_t function = uint64_t{f_high} << 32 | f_low, argument = uint64_t{a_high} << 32 | a_low;
  reinterpret_cast<void (*)(void*)>(function)(reinterpret_cast<void*>(argument));
}

void* new_stack(char* stack, size_t bytes, void (*function)(void*), void* argument) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  const auto f = reinterpret_cast<uint64_t>(function), a = reinterpret_cast<uint64_t>(argument);
  makecontext(context, reinterpret_cast<void (*)()>(&call), 4, static_cast<unsigned>(f >> 32), static_cast<unsigned>(f),
              static_cast<unsigned>(a >> 32), static_cast<unsigned>(a));
  return context;
}

extern "C" void emulator_swap(void** save, void* to) {
  if (!*save) *save = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(to));
}
#endif

}  // namespace

Fiber::Fiber() {
  if (__tsan_get_current_fiber) tsan_ = __tsan_get_current_fiber();
  pthread_attr_t attributes;
  void* stack;
  if (!pthread_getattr_np(pthread_self(), &attributes)) {
    pthread_attr_getstack(&attributes, &stack, &bytes_);
    pthread_attr_destroy(&attributes);
    stack_ = static_cast<char*>(stack);
  }
}

Fiber::Fiber(void (*body)(void*), void* argument) : body_(body), argument_(argument), bytes_(kStackBytes) {
  void* memory = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE)) {
    std::perror("mmap");
    std::exit(2);
  }
  mapped_ = static_cast<char*>(memory);
  stack_ = mapped_ + kPage;
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stack_, bytes_);
  if (__tsan_create_fiber) tsan_ = __tsan_create_fiber(0);
  top_ = new_stack(stack_, bytes_, &Fiber::enter, this);
}

Fiber::~Fiber() {
  if (!mapped_) return;
  if (__tsan_destroy_fiber) __tsan_destroy_fiber(tsan_);
  munmap(mapped_, kPage + kStackBytes);
}

void Fiber::enter(void* fiber) {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  const Fiber& self = *static_cast<Fiber*>(fiber);
  self.body_(self.argument_);
}

void Fiber::switch_to(Fiber& other) {
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(other.tsan_, kNoOrder);
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&asan_, other.stack_, other.bytes_);
  emulator_swap(&top_, other.top_);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(asan_, nullptr, nullptr);
}

void Fiber::release_for(Fiber& other, void* object) {
  if (!__tsan_switch_to_fiber) return;
  __tsan_switch_to_fiber(other.tsan_, kNoOrder);
  release(object);
  __tsan_switch_to_fiber(tsan_, kNoOrder);
}

void release(void* object) {
  if (__tsan_release) __tsan_release(object);
}

void acquire(void* object) {
  if (__tsan_acquire) __tsan_acquire(object);
}

}  // namespace emulator
