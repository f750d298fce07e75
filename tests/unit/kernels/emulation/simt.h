// Blocks of threads on the processor, one block after the other, so that the
// source of CUDA kernels can be run, debugged and sanitized without a device:
// the threads of a block are coroutines that meet at its barriers. One caller
// at a time.
#pragma once

#include <cstdint>
#include <functional>

namespace simt {

struct Dim {
  constexpr Dim(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1)
      : x(x_), y(y_), z(z_) {}
  unsigned x, y, z;
};

// Of the thread that runs.
extern Dim thread_index, block_index, block_size, grid_size;

// Calls kernel() as each thread of each block. Ends the program if threads wait
// for ones that never come.
void RunGrid(Dim grid, Dim block, const std::function<void()>& kernel);

// The barrier of a block; true if any thread says so.
bool MeetBlock(bool any = false);

// What lane `from` of the caller's warp gives; all its lanes call it.
uint64_t Exchange(uint64_t value, unsigned from);

// Bit i is what lane i gives.
uint32_t Ballot(bool value);

}  // namespace simt
