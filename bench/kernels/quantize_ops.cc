// NF4 with nested scales of a matrix of Llama-3-8B, beside bitsandbytes' CPU
// path in a process of its own.
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/kernels/bench.h"
#include "bench/peer.h"
#include "common/base/status_macros.h"
#include "worker/trainer/parallel/aligned_buffer.h"

namespace qlora::bench {
namespace {

using kernels::Result;
using trainer::AlignedBuffer;

constexpr char kQuantize[] = "nf4_quantize";
constexpr char kDequantize[] = "nf4_dequantize_nested";
constexpr int64_t kRows = 4096;
constexpr int64_t kColumns = 14336;
constexpr int kBlockSize = 64;
constexpr kernels::BlockwiseShape kShape{kRows * kColumns, kBlockSize};
constexpr double kElements = kShape.num_elements;
// Read and written: half a byte of codes, the scales, and float32 or bfloat16.
constexpr double kPackedBytes = kShape.code_bytes() + kShape.num_blocks() +
                                4.0 * kShape.num_nested_blocks();

// A packed matrix and what making it needs.
struct Packed {
  std::vector<uint8_t> codes = std::vector<uint8_t>(kShape.code_bytes());
  std::vector<uint8_t> absmax_codes = std::vector<uint8_t>(kShape.num_blocks());
  std::vector<float> absmax_scale =
      std::vector<float>(kShape.num_nested_blocks());
  float offset = 0;
  bool operator==(const Packed&) const = default;

  kernels::Quantize From(const float* x) {
    return {.x = x,
            .shape = kShape,
            .codes = codes.data(),
            .scales = {.absmax_codes = absmax_codes.data(),
                       .absmax_scale = absmax_scale.data(),
                       .offset = &offset}};
  }
  kernels::Dequantize To(const AlignedBuffer& out) const {
    return {
        .codes = codes.data(),
        .scales = {.absmax_codes = absmax_codes.data(),
                   .absmax_scale = absmax_scale.data(),
                   .offset = &offset},
        .rows = kRows,
        .block_size = kBlockSize,
        .out = kernels::MakeView(out.bytes().data(), kernels::Dtype::kBfloat16,
                                 kRows, kColumns)};
  }
};

class QuantizeBench {
 public:
  explicit QuantizeBench(KernelBench* bench) : bench_(*bench) {}

  absl::Status Run() {
    RETURN_IF_ERROR(Prepare());
    if (!bench_.options().peer_python.empty()) {
      ASSIGN_OR_RETURN(
          peer_,
          Peer::Start(bench_.options(), "bitsandbytes_peer.py",
                      absl::StrCat(kRows, " ", kColumns, " ", kBlockSize)));
    }
    if (bench_.Wants(kQuantize)) RETURN_IF_ERROR(TimeQuantize());
    return bench_.Wants(kDequantize) ? TimeDequantize() : absl::OkStatus();
  }

 private:
  absl::Status Prepare() {
    x_.resize(kShape.num_elements);
    std::mt19937 engine(1);
    std::normal_distribution<float> normal(0, 0.02f);
    for (float& value : x_) value = normal(engine);
    launch_ = bench_.launch();
    launch_.workspace_bytes =
        bench_.backend().WorkspaceBytes(packed_.From(x_.data()), 1);
    ASSIGN_OR_RETURN(workspace_, AlignedBuffer::Create(launch_.workspace_bytes,
                                                       "workspace"));
    launch_.workspace = workspace_.bytes().data();
    return absl::OkStatus();
  }

  // Of the peer's process.
  Turn PeerTurn(const char* name) const {
    if (peer_ == nullptr) return nullptr;
    return [this, name] { return peer_->Seconds(name); };
  }

  absl::Status TimeQuantize() {
    const kernels::Quantize op = packed_.From(x_.data());
    Packed expected;
    if (bench_.backend().Run(launch_, op) != Result::kOk ||
        kernels::ReferenceBackend().Run(launch_, expected.From(x_.data())) !=
            Result::kOk ||
        packed_ != expected) {
      return absl::InternalError(absl::StrCat(kQuantize, " gives other bytes"));
    }
    return bench_.Time(
        {.name = kQuantize, .bytes = 4 * kElements + kPackedBytes},
        Timed([&] { bench_.backend().Run(launch_, op); }), PeerTurn(kQuantize));
  }

  absl::Status TimeDequantize() {
    constexpr int64_t kBytes = 2 * kShape.num_elements;
    ASSIGN_OR_RETURN(const AlignedBuffer out,
                     AlignedBuffer::Create(kBytes, "the matrix"));
    ASSIGN_OR_RETURN(const AlignedBuffer expected,
                     AlignedBuffer::Create(kBytes, "the matrix"));
    const kernels::Dequantize op = packed_.To(out);
    if (bench_.backend().Run(launch_, op) != Result::kOk ||
        kernels::ReferenceBackend().Run(launch_, packed_.To(expected)) !=
            Result::kOk ||
        std::memcmp(out.bytes().data(), expected.bytes().data(), kBytes) != 0) {
      return absl::InternalError(
          absl::StrCat(kDequantize, " gives other bytes"));
    }
    return bench_.Time(
        {.name = kDequantize, .bytes = 2 * kElements + kPackedBytes},
        Timed([&] { bench_.backend().Run(launch_, op); }),
        PeerTurn(kDequantize));
  }

  KernelBench& bench_;
  std::unique_ptr<Peer> peer_;
  std::vector<float> x_;
  Packed packed_;
  AlignedBuffer workspace_;
  kernels::Launch launch_;
};

}  // namespace

absl::Status BenchQuantizeOps(KernelBench* bench) {
  if (!bench->Wants(kQuantize) && !bench->Wants(kDequantize)) {
    return absl::OkStatus();
  }
  return QuantizeBench(bench).Run();
}

}  // namespace qlora::bench
