// Every op is captured in a graph: that they neither allocate nor wait shows in
// that the capture succeeds, and the graph computes what they do.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/unit/kernels/sample_ops.h"

namespace qlora::kernels {
namespace {

// In the device's memory.
class DeviceSamples final : public Samples {
 public:
  using Samples::Samples;
  ~DeviceSamples() override {
    for (const Buffer& b : buffers_) cudaFree(b.data);
  }

  // As they were filled.
  void Reset() const {
    for (const Buffer& b : buffers_) Fill(b);
  }
  std::vector<std::vector<char>> Contents() const {
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<std::vector<char>> contents;
    for (const Buffer& b : buffers_) {
      contents.emplace_back(b.bytes.size());
      EXPECT_EQ(cudaMemcpy(contents.back().data(), b.data, b.bytes.size(),
                           cudaMemcpyDeviceToHost),
                cudaSuccess);
    }
    return contents;
  }

 private:
  struct Buffer {
    void* data;
    std::vector<char> bytes;
  };

  static void Fill(const Buffer& b) {
    EXPECT_EQ(cudaMemcpy(b.data, b.bytes.data(), b.bytes.size(),
                         cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  void* Place(std::vector<char> bytes) override {
    void* data = nullptr;
    EXPECT_EQ(cudaMalloc(&data, bytes.size()), cudaSuccess);
    buffers_.push_back({data, std::move(bytes)});
    Fill(buffers_.back());
    return data;
  }

  std::vector<Buffer> buffers_;
};

// A call of every op the device has, queued one after the other.
class Calls {
 public:
  explicit Calls(const Samples::Kind& kind) : samples_(kind) {
    ForCommonOps([this]<typename Op>(const char* name) {
      const Op op = SampleOf<Op>(samples_);
      room_ = std::max(room_, CudaBackend()->WorkspaceBytes(op, 1));
      calls_.push_back([=](const Launch& launch) {
        EXPECT_EQ(CudaBackend()->Run(launch, op), Result::kOk) << name;
      });
    });
  }

  const DeviceSamples& samples() const { return samples_; }
  int64_t workspace_bytes() const { return room_; }
  void Queue(const Launch& launch) const {
    for (const auto& call : calls_) call(launch);
  }

 private:
  DeviceSamples samples_;
  int64_t room_ = 0;
  std::vector<std::function<void(const Launch&)>> calls_;
};

void ExpectCaptured(const Samples::Kind& kind) {
  const Calls calls(kind);
  Launch launch = {.workspace_bytes = calls.workspace_bytes()};
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  launch.stream = stream;
  ASSERT_EQ(cudaMalloc(&launch.workspace, launch.workspace_bytes), cudaSuccess);
  const auto filled = calls.samples().Contents();
  calls.Queue(launch);
  const auto expected = calls.samples().Contents();
  EXPECT_NE(expected, filled);

  cudaGraph_t graph;
  cudaGraphExec_t run;
  calls.samples().Reset();
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal),
            cudaSuccess);
  calls.Queue(launch);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  EXPECT_EQ(calls.samples().Contents(), filled);
  ASSERT_EQ(cudaGraphInstantiate(&run, graph, 0), cudaSuccess);
  for (int i = 0; i < 2; ++i) {
    calls.samples().Reset();
    ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);
    EXPECT_EQ(calls.samples().Contents(), expected);
  }
  cudaGraphExecDestroy(run);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  cudaFree(launch.workspace);
}

// More rows than one block of a grid takes.
TEST(CudaGraphTest, EveryOp_ComputesTheSameWhenCaptured) {
  for (const Dtype dtype :
       {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16}) {
    for (const bool rich : {false, true}) {
      SCOPED_TRACE(std::to_string(static_cast<int>(dtype)) +
                   (rich ? " rich" : " plain"));
      ExpectCaptured({.rows = 300, .dtype = dtype, .rich = rich});
    }
  }
}

}  // namespace
}  // namespace qlora::kernels
