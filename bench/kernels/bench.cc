#include "bench/kernels/bench.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "ATen/ATen.h"
#include "absl/strings/str_cat.h"
#include "bench/kernels/cuda_rows.h"
#include "bench/kernels/kernel_rows.h"
#include "common/base/status_macros.h"
#include "worker/trainer/ops/parallel.h"

namespace qlora::bench {
namespace {

constexpr char kPrefix[] = "kernels/cpu/";

// Until the threads of whoever ran before sleep.
void Settle() { std::this_thread::sleep_for(std::chrono::milliseconds(10)); }

}  // namespace

Turn Timed(std::function<void()> run) {
  return [run = std::move(run)]() -> absl::StatusOr<double> {
    const double first = Seconds(run);
    return std::min(first, Seconds(run));
  };
}

absl::Status CheckNear(const std::string& name, const at::Tensor& ours,
                       const at::Tensor& theirs, double share) {
  const at::Tensor want = theirs.to(at::kFloat);
  const double size = want.abs().max().item<double>();
  const double difference =
      (ours.to(at::kFloat) - want).abs().max().item<double>();
  if (difference <= share * size) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(name, " differs by ", difference,
                                          " from LibTorch's ", size));
}

KernelBench::KernelBench(const Options& options)
    : options_(options),
      backend_(*kernels::CpuBackends().front()),
      launch_{.parallel_for = trainer::KernelParallelFor(),
              .threads = options.threads} {}

bool KernelBench::Wants(const std::string& name) const {
  return options_.Wants(kPrefix + name);
}

std::vector<Limit>& KernelBench::LimitsOf(size_t kind) {
  std::vector<Limit>& limits = limits_[kind];
  if (limits.empty()) {
    limits = kind == 0
                 ? MemoryLimits(options_.threads)
                 : std::vector{GemmLimit(kind == 1 ? kernels::Dtype::kFloat32
                                                   : kernels::Dtype::kBfloat16,
                                         options_.threads)};
  }
  return limits;
}

absl::Status KernelBench::Time(const KernelRow& row, const Turn& ours,
                               const Turn& peer) {
  const size_t kind =
      row.bytes > 0 ? 0 : (row.dtype == kernels::Dtype::kFloat32 ? 1 : 2);
  std::vector<Limit>& limits = LimitsOf(kind);
  const double work = row.bytes + row.flops;
  double limit = 0;
  Row timed{.name = kPrefix + row.name,
            .value = 0,
            .unit = limits.front().unit,
            .peer_value = {},
            .ratio = {},
            .limit_share = {}};
  for (int i = 0; i < options_.turns; ++i) {
    Settle();
    ASSIGN_OR_RETURN(const double seconds, ours());
    timed.value = std::max(timed.value, work / seconds);
    Settle();
    if (peer != nullptr) {
      ASSIGN_OR_RETURN(const double peers, peer());
      timed.peer_value = std::max(timed.peer_value.value_or(0), work / peers);
      Settle();
    }
    limit = std::max(limit, limits.front().Measure());
    for (size_t k = 1; k < limits.size(); ++k) limits[k].Measure();
  }
  timed.limit_share = timed.value / limit;
  if (timed.peer_value) timed.ratio = timed.value / *timed.peer_value;
  rows_.push_back(std::move(timed));
  return absl::OkStatus();
}

std::vector<Row> KernelBench::Rows() const {
  std::vector<Row> rows;
  for (const auto& limits : limits_) {
    for (const Limit& limit : limits) {
      rows.push_back({.name = limit.name,
                      .value = limit.best,
                      .unit = limit.unit,
                      .peer_value = {},
                      .ratio = {},
                      .limit_share = {}});
    }
  }
  rows.insert(rows.end(), rows_.begin(), rows_.end());
  return rows;
}

absl::Status AddKernelRows(const Options& options, std::vector<Row>* rows,
                           std::vector<std::string>* skipped) {
  KernelBench bench(options);
  RETURN_IF_ERROR(BenchQuantizeOps(&bench));
  RETURN_IF_ERROR(BenchRowOps(&bench));
  RETURN_IF_ERROR(BenchAttentionOps(&bench));
  std::ranges::move(bench.Rows(), std::back_inserter(*rows));
  if (kernels::CudaBackend() != nullptr) return BenchCudaOps(options, rows);
  for (const char* name : kCudaRows) {
    if (!options.Wants(name)) continue;
    skipped->push_back(
        absl::StrCat(name, ": ", std::string(kernels::WhyNoCuda())));
  }
  return absl::OkStatus();
}

}  // namespace qlora::bench
