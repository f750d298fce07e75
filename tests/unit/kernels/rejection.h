// Calls that every backend must take, and such that every one must refuse.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "tests/unit/kernels/tested_backends.h"

namespace qlora::kernels {

// Those that are tested, and the reference.
inline std::vector<const Backend*> EveryBackend() {
  std::vector<const Backend*> all(TestedBackends().begin(),
                                  TestedBackends().end());
  all.push_back(&ReferenceBackend());
  return all;
}

// With the workspace that the op says, and canaries behind it.
template <typename Op>
Result RunWithRoom(const Backend& backend, Launch launch, const Op& op,
                   int threads = 1) {
  launch.threads = threads;
  const int64_t bytes = backend.WorkspaceBytes(op, threads);
  std::vector<uint8_t> room(bytes + 128, 0xA5);
  auto* begin = reinterpret_cast<uint8_t*>(
      (reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
  // NaN of every type: contents do not matter.
  std::fill_n(begin, bytes, uint8_t{0xff});
  launch.workspace = begin;
  launch.workspace_bytes = bytes;
  const Result result = backend.Run(launch, op);
  for (uint8_t* p = begin + bytes; p < room.data() + room.size(); ++p) {
    EXPECT_EQ(*p, 0xA5);
  }
  return result;
}

template <typename Op>
void ExpectRejected(const Op& op, const Launch& launch = {}) {
  for (const Backend* backend : EveryBackend()) {
    EXPECT_EQ(backend->Run(launch, op), Result::kInvalidArgument)
        << backend->name();
  }
}

// The call whose changes are rejected.
template <typename Op>
void ExpectAccepted(const Op& op) {
  for (const Backend* backend : EveryBackend()) {
    EXPECT_EQ(RunWithRoom(*backend, {}, op), Result::kOk) << backend->name();
  }
}

// What only backends can see that read the buffers themselves.
template <typename Op>
void ExpectRejectedOnHost(const Op& op, const Launch& launch = {}) {
  EXPECT_EQ(ReferenceBackend().Run(launch, op), Result::kInvalidArgument);
  for (const Backend* backend : CpuBackends()) {
    EXPECT_EQ(backend->Run(launch, op), Result::kInvalidArgument);
  }
}

}  // namespace qlora::kernels
