// The ops on a CUDA device. Buffers rotate, so that the caches hold nothing of
// the run before.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "bench/kernels/cuda_rows.h"
#include "bench/peer.h"
#include "common/base/status_macros.h"
#include "kernels/backend.h"

namespace qlora::bench {
namespace {

using kernels::Dtype;
using kernels::Launch;
using kernels::MakeView;
using kernels::Result;

constexpr int64_t kRotated = int64_t{512} << 20;

absl::Status ToStatus(cudaError_t error, std::string_view doing) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("CUDA failed to ", std::string(doing),
                                          ": ", cudaGetErrorString(error)));
}

// Device memory with what the host has.
class Buffer {
 public:
  Buffer(const void* from, int64_t bytes) {
    if (cudaMalloc(&data_, bytes) != cudaSuccess) data_ = nullptr;
    if (data_ != nullptr) {
      cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice);
    }
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&&) = delete;

  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// A buffer that an op writes, and how far it may be from the CPU's: a share of
// each element's magnitude plus 1/8; 0: not at all.
struct Output {
  size_t buffer;
  Dtype dtype;
  float tolerance;
};

// Of what is computed in float32 and rounded once.
constexpr Output Float32(size_t buffer) {
  return {buffer, Dtype::kFloat32, 0x1p-18f};
}
constexpr Output Bfloat16(size_t buffer) {
  return {buffer, Dtype::kBfloat16, 0x1p-7f};
}

// One op: the host's buffers, the op over buffers at the places given, the
// bytes that it has to move, and what it writes.
struct Work {
  std::vector<std::vector<char>> buffers;
  std::function<Result(const kernels::Backend&, const std::vector<void*>&)> run;
  double bytes;
  std::vector<Output> outputs;
  // Of bitsandbytes_peer.py, for its nf4_dequantize_nested; empty: no peer.
  std::string peer = {};
};

std::vector<char> Floats(int64_t n, float low, float high) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> value(low, high);
  std::vector<char> bytes(n * 4);
  for (int64_t i = 0; i < n; ++i) {
    const float drawn = value(random);
    std::memcpy(bytes.data() + 4 * i, &drawn, 4);
  }
  return bytes;
}

// bfloat16 values in [-2, 2).
std::vector<char> Halves(int64_t n) {
  std::vector<char> wide = Floats(n, -2, 2), bytes(n * 2);
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(bytes.data() + 2 * i, wide.data() + 4 * i + 2, 2);
  }
  return bytes;
}

std::vector<char> Bytes(int64_t n) {
  std::mt19937 random(1);
  std::vector<char> bytes(n);
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

template <typename T>
T* As(void* p) {
  return static_cast<T*>(p);
}

Work DequantizeWork(int64_t size) {
  const kernels::BlockwiseShape shape = {size * size, 64};
  const auto run = [=](const kernels::Backend& backend,
                       const std::vector<void*>& p) {
    return backend.Run(
        Launch{}, kernels::Dequantize{
                      .codes = As<uint8_t>(p[0]),
                      .scales = {.absmax_codes = As<uint8_t>(p[1]),
                                 .absmax_scale = As<float>(p[2]),
                                 .offset = As<float>(p[3])},
                      .rows = size,
                      .out = MakeView(p[4], Dtype::kBfloat16, size, size)});
  };
  const int64_t packed =
      shape.code_bytes() + shape.num_blocks() + 4 * shape.num_nested_blocks();
  return {
      {Bytes(shape.code_bytes()), Bytes(shape.num_blocks()),
       Floats(shape.num_nested_blocks(), 0.01f, 0.02f), Floats(1, 0.03f, 0.04f),
       std::vector<char>(size * size * 2)},
      run,
      static_cast<double>(packed + 2 * size * size),
      {{4, Dtype::kBfloat16, 0}},
      absl::StrCat(size, " ", size, " ", shape.block_size, " --device cuda")};
}

Work RmsNormWork() {
  constexpr int64_t kRows = 8192, kColumns = 4096;
  const auto run = [](const kernels::Backend& backend,
                      const std::vector<void*>& p) {
    return backend.Run(
        Launch{}, kernels::RmsNorm{
                      .x = MakeView(p[0], Dtype::kFloat32, kRows, kColumns),
                      .weight = As<float>(p[1]),
                      .eps = 1e-5f,
                      .out = MakeView(p[2], Dtype::kBfloat16, kRows, kColumns),
                      .rstd = As<float>(p[3])});
  };
  return {
      {Floats(kRows * kColumns, -2, 2), Floats(kColumns, 0, 1),
       std::vector<char>(kRows * kColumns * 2), std::vector<char>(kRows * 4)},
      run,
      6.0 * kRows * kColumns,
      {Bfloat16(2), Float32(3)}};
}

Work GatedWork() {
  constexpr int64_t kRows = 4096, kColumns = 14336;
  const auto run = [](const kernels::Backend& backend,
                      const std::vector<void*>& p) {
    const auto view = [&](int i) {
      return MakeView(p[i], Dtype::kBfloat16, kRows, kColumns);
    };
    return backend.Run(Launch{},
                       kernels::GatedActivation{
                           .gate = view(0), .up = view(1), .out = view(2)});
  };
  return {{Halves(kRows * kColumns), Halves(kRows * kColumns),
           std::vector<char>(kRows * kColumns * 2)},
          run,
          6.0 * kRows * kColumns,
          {Bfloat16(2)}};
}

Work RotaryWork() {
  constexpr int64_t kRows = 8192;
  constexpr int kHeads = 40, kDim = 128;
  std::vector<char> position(kRows * 4);
  for (int32_t r = 0; r < kRows; ++r) {
    std::memcpy(position.data() + 4 * r, &r, 4);
  }
  const auto run = [](const kernels::Backend& backend,
                      const std::vector<void*>& p) {
    return backend.Run(
        Launch{}, kernels::Rotary{.x = MakeView(p[0], Dtype::kBfloat16, kRows,
                                                kHeads * kDim),
                                  .heads = kHeads,
                                  .dim = kDim,
                                  .rotary_dim = kDim,
                                  .cos = As<float>(p[1]),
                                  .sin = As<float>(p[2]),
                                  .positions = kRows,
                                  .position = As<int32_t>(p[3])});
  };
  return {{Halves(kRows * kHeads * kDim), Floats(kRows * kDim / 2, -1, 1),
           Floats(kRows * kDim / 2, -1, 1), position},
          run,
          4.0 * kRows * kHeads * kDim + 4.0 * kRows * kDim,
          {Bfloat16(0)}};
}

Work AdamWWork() {
  constexpr int64_t kSize = 16 << 20;
  const auto run = [](const kernels::Backend& backend,
                      const std::vector<void*>& p) {
    kernels::AdamW op;
    op.n = kSize;
    op.param = As<float>(p[0]);
    op.grad = As<float>(p[1]);
    op.moments.exp_avg = As<float>(p[2]);
    op.moments.exp_avg_sq = As<float>(p[3]);
    op.learning_rate = 1e-3;
    return backend.Run(Launch{}, op);
  };
  return {{Floats(kSize, -1, 1), Floats(kSize, -1, 1), Floats(kSize, -1, 1),
           Floats(kSize, 0, 1)},
          run,
          32.0 * kSize,
          {Float32(0), Float32(1), Float32(2), Float32(3)}};
}

// Seconds of one of `runs` on the default stream, the best of several rounds.
absl::StatusOr<double> BestSecondsOf(int runs,
                                     const std::function<Result(int)>& run) {
  cudaEvent_t begin, end;
  RETURN_IF_ERROR(ToStatus(cudaEventCreate(&begin), "make an event"));
  RETURN_IF_ERROR(ToStatus(cudaEventCreate(&end), "make an event"));
  float best = 0;
  for (int round = 0; round < 6; ++round) {
    cudaEventRecord(begin);
    for (int i = 0; i < runs; ++i) {
      if (run(i) != Result::kOk) return absl::InternalError("an op failed");
    }
    cudaEventRecord(end);
    RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(end), "run an op"));
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    // The first warms up.
    if (round > 0)
      best = round == 1 ? milliseconds : std::min(best, milliseconds);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best / 1e3 / runs;
}

std::vector<Buffer> ToDevice(const Work& work) {
  std::vector<Buffer> there;
  for (const auto& buffer : work.buffers) {
    there.emplace_back(buffer.data(), static_cast<int64_t>(buffer.size()));
  }
  return there;
}

std::vector<void*> PlacesOf(const std::vector<Buffer>& buffers) {
  std::vector<void*> places;
  for (const Buffer& buffer : buffers) places.push_back(buffer.data());
  return places;
}

float At(const char* bytes, int64_t i, Dtype dtype) {
  uint32_t bits = 0;
  const int64_t size = kernels::ElementSize(dtype);
  // A bfloat16 is the upper half.
  std::memcpy(reinterpret_cast<char*>(&bits) + 4 - size, bytes + i * size,
              size);
  return std::bit_cast<float>(bits);
}

absl::Status Compare(const std::string& name, const Output& output,
                     const std::vector<char>& got,
                     const std::vector<char>& want) {
  const int64_t size = kernels::ElementSize(output.dtype);
  for (int64_t i = 0; i < static_cast<int64_t>(want.size()) / size; ++i) {
    if (std::memcmp(&got[i * size], &want[i * size], size) == 0) continue;
    const float w = At(want.data(), i, output.dtype);
    const float g = At(got.data(), i, output.dtype);
    if (std::fabs(g - w) < output.tolerance * (std::fabs(w) + 0.125f)) continue;
    return absl::InternalError(absl::StrCat(name, ": element ", i,
                                            " of buffer ", output.buffer,
                                            " is ", g, " instead of ", w));
  }
  return absl::OkStatus();
}

// One run against the fastest CPU backend.
absl::Status Check(const std::string& name, Work work) {
  const std::vector<Buffer> there = ToDevice(work);
  std::vector<void*> here;
  for (auto& buffer : work.buffers) here.push_back(buffer.data());
  if (work.run(*kernels::CudaBackend(), PlacesOf(there)) != Result::kOk ||
      work.run(*kernels::CpuBackends().front(), here) != Result::kOk) {
    return absl::InternalError(absl::StrCat(name, ": the op failed"));
  }
  for (const Output& output : work.outputs) {
    const std::vector<char>& want = work.buffers[output.buffer];
    std::vector<char> got(want.size());
    RETURN_IF_ERROR(ToStatus(cudaMemcpy(got.data(), there[output.buffer].data(),
                                        got.size(), cudaMemcpyDeviceToHost),
                             "copy a result"));
    RETURN_IF_ERROR(Compare(name, output, got, want));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> DeviceCopyBandwidth() {
  const std::vector<char> zeros(kRotated);
  const Buffer from(zeros.data(), kRotated), to(zeros.data(), kRotated);
  ASSIGN_OR_RETURN(const double seconds, BestSecondsOf(10, [&](int) {
                     return cudaMemcpyAsync(to.data(), from.data(), kRotated,
                                            cudaMemcpyDeviceToDevice) ==
                                    cudaSuccess
                                ? Result::kOk
                                : Result::kDeviceError;
                   }));
  return 2.0 * kRotated / seconds;
}

// By the peer, after ours; none, with the reason, where it cannot run: that
// must not cost the other rows.
std::optional<double> PeerSeconds(Options options, const std::string& name,
                                  const Work& work) {
  if (work.peer.empty() || options.cuda_python.empty()) return std::nullopt;
  options.peer_python = options.cuda_python;
  const absl::StatusOr<std::unique_ptr<Peer>> peer =
      Peer::Start(options, "bitsandbytes_peer.py", work.peer);
  const absl::StatusOr<double> seconds =
      peer.ok() ? (*peer)->Seconds("nf4_dequantize_nested")
                : absl::StatusOr<double>(peer.status());
  if (seconds.ok()) return *seconds;
  std::printf("no peer for %s: %s\n", name.c_str(),
              std::string(seconds.status().message()).c_str());
  return std::nullopt;
}

absl::StatusOr<double> OurSeconds(const Work& work) {
  std::vector<std::vector<Buffer>> sets;
  for (double bytes = 0; bytes < kRotated; bytes += work.bytes) {
    sets.push_back(ToDevice(work));
  }
  const auto count = static_cast<int>(sets.size());
  return BestSecondsOf(4 * count, [&](int i) {
    return work.run(*kernels::CudaBackend(), PlacesOf(sets[i % count]));
  });
}

absl::StatusOr<Row> Measure(const Options& options, const std::string& name,
                            const Work& work, double copy) {
  RETURN_IF_ERROR(Check(name, work));
  ASSIGN_OR_RETURN(const double seconds, OurSeconds(work));
  const std::optional<double> peers = PeerSeconds(options, name, work);
  Row row{.name = name,
          .value = work.bytes / seconds,
          .unit = "bytes/s",
          .peer_value = {},
          .ratio = {},
          .limit_share = work.bytes / seconds / copy};
  if (peers) {
    row.peer_value = work.bytes / *peers;
    row.ratio = *peers / seconds;
  }
  return row;
}

}  // namespace

std::string CudaDeviceName() {
  int device = 0;
  cudaDeviceProp properties;
  if (kernels::CudaBackend() == nullptr ||
      cudaGetDevice(&device) != cudaSuccess ||
      cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
    return "";
  }
  return properties.name;
}

absl::Status BenchCudaOps(const Options& options, std::vector<Row>* rows) {
  const std::function<Work()> works[] = {[] { return DequantizeWork(4096); },
                                         [] { return DequantizeWork(8192); },
                                         RmsNormWork,
                                         GatedWork,
                                         RotaryWork,
                                         AdamWWork};
  static_assert(std::size(works) == std::size(kCudaRows));
  double copy = 0;
  for (size_t i = 0; i < std::size(works); ++i) {
    if (!options.Wants(kCudaRows[i])) continue;
    if (copy == 0) {
      ASSIGN_OR_RETURN(copy, DeviceCopyBandwidth());
      rows->push_back({.name = "machine/cuda/copy",
                       .value = copy,
                       .unit = "bytes/s",
                       .peer_value = {},
                       .ratio = {},
                       .limit_share = {}});
    }
    ASSIGN_OR_RETURN(const Row row,
                     Measure(options, kCudaRows[i], works[i](), copy));
    rows->push_back(row);
  }
  return absl::OkStatus();
}

}  // namespace qlora::bench
