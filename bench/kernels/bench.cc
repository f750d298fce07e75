#include "bench/kernels/bench.h"

#include "absl/strings/str_cat.h"
#include "bench/kernels/cuda_rows.h"
#include "bench/kernels/kernel_rows.h"
#include "bench/machine.h"
#include "common/base/status_macros.h"
#include "worker/trainer/ops/parallel.h"

namespace qlora::bench {
namespace {

constexpr char kPrefix[] = "kernels/cpu/";

const char* GemmName(kernels::Dtype dtype) {
  return dtype == kernels::Dtype::kBfloat16 ? "bfloat16" : "float32";
}

}  // namespace

KernelBench::KernelBench(const Options& options, std::vector<Row>* rows)
    : options_(options),
      backend_(*kernels::CpuBackends().front()),
      launch_{.parallel_for = trainer::KernelParallelFor(),
              .threads = options.threads},
      rows_(rows) {}

bool KernelBench::Wants(const std::string& name) const {
  return options_.Wants(kPrefix + name);
}

void KernelBench::Add(const KernelRow& row) {
  const bool moves = row.bytes > 0;
  std::optional<double>& limit =
      moves ? copy_bandwidth_
            : gemm_rate_[row.dtype == kernels::Dtype::kBfloat16];
  if (!limit) {
    limit = moves ? CopyBandwidth(options_.threads)
                  : GemmRate(row.dtype, options_.threads);
    rows_->push_back(
        {.name = moves ? "machine/copy"
                       : absl::StrCat("machine/gemm/", GemmName(row.dtype)),
         .value = *limit,
         .unit = moves ? "bytes/s" : "FLOP/s",
         .peer_value = {},
         .ratio = {},
         .limit_share = {}});
  }
  const double work = moves ? row.bytes : row.flops;
  Row out{.name = kPrefix + row.name,
          .value = work / row.seconds,
          .unit = moves ? "bytes/s" : "FLOP/s",
          .peer_value = {},
          .ratio = {},
          .limit_share = work / row.seconds / *limit};
  if (row.peer_seconds) {
    out.peer_value = work / *row.peer_seconds;
    out.ratio = *row.peer_seconds / row.seconds;
  }
  rows_->push_back(out);
}

absl::Status AddKernelRows(const Options& options, std::vector<Row>* rows) {
  KernelBench bench(options, rows);
  RETURN_IF_ERROR(BenchQuantizeOps(&bench));
  RETURN_IF_ERROR(BenchRowOps(&bench));
  RETURN_IF_ERROR(BenchAttentionOps(&bench));
  return BenchCudaOps(options, rows);
}

}  // namespace qlora::bench
