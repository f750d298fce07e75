#include "tests/unit/kernels/emulation/simt.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// Keeps the registers that a call keeps on the stack, that stack's pointer in
// *from, and goes on where `to` was left.
extern "C" void SimtSwitchStacks(void** from, void* to);
asm(R"(
  .text
  .type SimtSwitchStacks, @function
SimtSwitchStacks:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
  .size SimtSwitchStacks, .-SimtSwitchStacks
)");

namespace simt {

Dim thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kWarp = 32;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Thread {
  std::unique_ptr<char[]> stack;
  // Where its stack was left.
  void* at = nullptr;
  State state = State::kDone;
  uint64_t given = 0;
};

std::vector<Thread> threads;
void* scheduler = nullptr;
unsigned current = 0;
const std::function<void()>* body = nullptr;
bool any_said = false, any_heard = false;

// AddressSanitizer has to be told of every change of stacks.
void BeforeSwitch([[maybe_unused]] void** save,
                  [[maybe_unused]] const void* bottom,
                  [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(save, bottom, size);
#endif
}
void AfterSwitch([[maybe_unused]] void* saved,
                 [[maybe_unused]] const void** bottom,
                 [[maybe_unused]] size_t* size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#endif
}

const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;

void Suspend(State state) {
  Thread& thread = threads[current];
  thread.state = state;
  void* saved = nullptr;
  BeforeSwitch(state == State::kDone ? nullptr : &saved, scheduler_stack,
               scheduler_stack_bytes);
  SimtSwitchStacks(&thread.at, scheduler);
  AfterSwitch(saved, nullptr, nullptr);
}

void Main() {
  AfterSwitch(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  (*body)();
  Suspend(State::kDone);
}

void Resume(unsigned i) {
  current = i;
  thread_index = {i % block_size.x, i / block_size.x % block_size.y,
                  i / (block_size.x * block_size.y)};
  void* saved = nullptr;
  BeforeSwitch(&saved, threads[i].stack.get(), kStackBytes);
  SimtSwitchStacks(&scheduler, threads[i].at);
  AfterSwitch(saved, nullptr, nullptr);
}

// Lets the waiting threads of [first, last) go on if all that are left wait for
// the same; false if there is none to wait.
bool Release(unsigned first, unsigned last, State at) {
  unsigned waiting = 0;
  for (unsigned i = first; i < last; ++i) {
    if (threads[i].state == State::kDone) continue;
    if (threads[i].state != at) return false;
    ++waiting;
  }
  for (unsigned i = first; i < last; ++i) {
    if (threads[i].state == at) threads[i].state = State::kReady;
  }
  return waiting > 0;
}

void RunWarp(unsigned first, unsigned last) {
  do {
    for (unsigned i = first; i < last; ++i) {
      if (threads[i].state == State::kReady) Resume(i);
    }
  } while (Release(first, last, State::kAtWarp));
}

// So that the first switch to it returns to Main.
void Prepare(Thread* thread) {
  if (!thread->stack) thread->stack.reset(new char[kStackBytes]);
  const auto end =
      reinterpret_cast<uintptr_t>(thread->stack.get()) + kStackBytes;
  auto* top = reinterpret_cast<void**>(end & ~uintptr_t{15});
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(&Main);
  // Six registers.
  std::fill(top - 8, top - 2, nullptr);
  thread->at = top - 8;
  thread->state = State::kReady;
}

void RunBlock(unsigned count) {
  for (unsigned i = 0; i < count; ++i) Prepare(&threads[i]);
  do {
    any_heard = any_said;
    any_said = false;
    for (unsigned first = 0; first < count; first += kWarp) {
      RunWarp(first, first + kWarp < count ? first + kWarp : count);
    }
  } while (Release(0, count, State::kAtBlock));
  for (unsigned i = 0; i < count; ++i) {
    if (threads[i].state == State::kDone) continue;
    std::fprintf(stderr, "thread %u waits for others that do not come\n", i);
    std::abort();
  }
}

}  // namespace

void RunGrid(Dim grid, Dim block, const std::function<void()>& kernel) {
  const unsigned count = block.x * block.y * block.z;
  if (threads.size() < count) threads.resize(count);
  body = &kernel;
  grid_size = grid;
  block_size = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        RunBlock(count);
      }
    }
  }
}

bool MeetBlock(bool any) {
  any_said = any_said || any;
  Suspend(State::kAtBlock);
  return any_heard;
}

uint64_t Exchange(uint64_t value, unsigned from) {
  const unsigned me = current;
  threads[me].given = value;
  Suspend(State::kAtWarp);
  const uint64_t got = threads[me / kWarp * kWarp + from % kWarp].given;
  Suspend(State::kAtWarp);
  return got;
}

uint32_t Ballot(bool value) {
  const unsigned first = current / kWarp * kWarp;
  threads[current].given = value;
  Suspend(State::kAtWarp);
  uint32_t votes = 0;
  for (unsigned i = 0; i < kWarp; ++i) {
    votes |= static_cast<uint32_t>(threads[first + i].given) << i;
  }
  Suspend(State::kAtWarp);
  return votes;
}

}  // namespace simt
