// Ops are captured in a graph: that they neither allocate nor wait shows in
// that the capture succeeds, and the graph computes what they do.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/backend.h"

namespace qlora::kernels {
namespace {

// Device memory with values.
template <typename T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : size_(values.size()) {
    EXPECT_EQ(cudaMalloc(&p_, size_ * sizeof(T)), cudaSuccess);
    Set(values);
  }
  ~Buffer() { cudaFree(p_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void Set(const std::vector<T>& values) {
    EXPECT_EQ(cudaMemcpy(p_, values.data(), size_ * sizeof(T),
                         cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(values.data(), p_, size_ * sizeof(T),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }
  T* get() const { return static_cast<T*>(p_); }

 private:
  void* p_ = nullptr;
  size_t size_;
};

TEST(CudaGraphTest, CapturedOps_ComputeTheSame) {
  constexpr int64_t kRows = 64, kColumns = 512, kCount = kRows * kColumns;
  std::vector<float> values(kCount);
  for (int64_t i = 0; i < kCount; ++i) {
    values[i] = static_cast<float>(i % 101) / 50 - 1;
  }
  const Buffer<float> weights(values), x(values), rstd(values), m(values);
  const Buffer<float> v{std::vector<float>(kCount, 1.0f)}, normed(values);
  const Buffer<uint8_t> codes{std::vector<uint8_t>(kCount)},
      nested{std::vector<uint8_t>(kCount)};
  const Buffer<float> scale(values), offset(values);
  const Buffer<int32_t> targets{std::vector<int32_t>(kRows, 7)};
  const Buffer<double> loss{std::vector<double>(kRows)}, sum{{0.0}};
  const Buffer<char> workspace{std::vector<char>(1 << 20)};
  const BlockwiseShape shape = {kCount, 64};
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  const Launch launch = {.stream = stream,
                         .workspace = workspace.get(),
                         .workspace_bytes = 1 << 20};
  const Backend& cuda = *CudaBackend();
  const auto queue = [&] {
    const Quantize quantize = {.x = weights.get(),
                               .shape = shape,
                               .codes = codes.get(),
                               .scales = {.absmax_codes = nested.get(),
                                          .absmax_scale = scale.get(),
                                          .offset = offset.get()}};
    const Dequantize dequantize = {.codes = codes.get(),
                                   .scales = {.absmax_codes = nested.get(),
                                              .absmax_scale = scale.get(),
                                              .offset = offset.get()},
                                   .rows = kRows,
                                   .out = FloatView(x.get(), kRows, kColumns)};
    const RmsNorm norm = {.x = FloatView(x.get(), kRows, kColumns),
                          .weight = weights.get(),
                          .eps = 1e-5f,
                          .out = FloatView(normed.get(), kRows, kColumns),
                          .rstd = rstd.get()};
    const CrossEntropy entropy = {
        .logits = FloatView(normed.get(), kRows, kColumns),
        .targets = targets.get(),
        .backward = true,
        .loss = loss.get()};
    AdamW adamw;
    adamw.n = kCount;
    adamw.param = x.get();
    adamw.grad = normed.get();
    adamw.moments.exp_avg = m.get();
    adamw.moments.exp_avg_sq = v.get();
    adamw.learning_rate = 0.1;
    adamw.grad_sum_of_squares = sum.get();
    EXPECT_EQ(cuda.Run(launch, quantize), Result::kOk);
    EXPECT_EQ(cuda.Run(launch, dequantize), Result::kOk);
    EXPECT_EQ(cuda.Run(launch, norm), Result::kOk);
    EXPECT_EQ(cuda.Run(launch, entropy), Result::kOk);
    EXPECT_EQ(cuda.Run(launch, adamw), Result::kOk);
  };
  queue();
  const std::vector<float> expected = x.Get();
  const std::vector<double> expected_sum = sum.Get();
  EXPECT_GT(expected_sum[0], 0);

  cudaGraph_t graph;
  cudaGraphExec_t run;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal),
            cudaSuccess);
  queue();
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&run, graph, 0), cudaSuccess);
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(cudaMemcpy(m.get(), values.data(), kCount * sizeof(float),
                         cudaMemcpyHostToDevice),
              cudaSuccess);
    const std::vector<float> ones(kCount, 1.0f);
    ASSERT_EQ(cudaMemcpy(v.get(), ones.data(), kCount * sizeof(float),
                         cudaMemcpyHostToDevice),
              cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);
    EXPECT_EQ(x.Get(), expected);
    EXPECT_EQ(sum.Get(), expected_sum);
  }
  cudaGraphExecDestroy(run);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace qlora::kernels
