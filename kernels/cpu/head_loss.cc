#include "kernels/head_loss.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"

namespace qlora::kernels {
namespace {

// Elements of a converted part of the weight.
constexpr int64_t kPanelElements = int64_t{1} << 20;

int64_t PanelRows(const HeadLoss& op) {
  return std::clamp<int64_t>(kPanelElements / op.weight.columns, 1,
                             op.weight.rows);
}

bool IsDirect(const HeadLoss& op) { return op.weight.dtype == op.x.dtype; }

// The workspace cut up; without a base only counted.
struct Buffers {
  Buffers(const HeadLoss& op, void* base) : base_(static_cast<char*>(base)) {
    const int64_t tokens = op.x.rows, hidden = op.x.columns;
    const int64_t n = std::min(op.chunk, tokens);
    rows = static_cast<int32_t*>(Take(tokens * 4));
    targets = static_cast<int32_t*>(Take(n * 4));
    loss = static_cast<double*>(Take(n * 8));
    x = Cut(op, n, hidden);
    logits = Cut(op, n, op.weight.rows);
    if (op.dx.data != nullptr) dx = Cut(op, n, hidden);
    if (!IsDirect(op) ||
        (op.dweight.data != nullptr && op.x.dtype != Dtype::kFloat32)) {
      panel = Cut(op, PanelRows(op), hidden);
    }
  }

  // With a target.
  int32_t* rows;
  int32_t* targets;
  double* loss;
  View x, logits, dx, panel;
  int64_t bytes = 0;

 private:
  void* Take(int64_t size) {
    void* piece = base_ == nullptr ? nullptr : base_ + bytes;
    bytes += (size + 63) / 64 * 64;
    return piece;
  }
  View Cut(const HeadLoss& op, int64_t rows, int64_t columns) {
    return MakeView(Take(rows * columns * ElementSize(op.x.dtype)), op.x.dtype,
                    rows, columns);
  }
  char* base_;
};

void CopyRow(const View& from, int64_t from_row, const View& to,
             int64_t to_row) {
  std::memcpy(to.Rows(to_row, 1).data, from.Rows(from_row, 1).data,
              from.columns * ElementSize(from.dtype));
}

// Some rows with targets: theirs in x, or where they lie apart, gathered.
struct Chunk {
  Chunk(const HeadLoss& op, const Buffers& b, int64_t first, int64_t n)
      : op(op),
        rows(b.rows + first),
        n(n),
        together(rows[n - 1] - rows[0] == n - 1),
        x(together ? op.x.Rows(rows[0], n) : b.x.Rows(0, n)),
        dx(together ? op.dx.Rows(rows[0], n) : b.dx.Rows(0, n)),
        logits(b.logits.Rows(0, n)) {
    for (int64_t r = 0; r < n; ++r) {
      b.targets[r] = op.targets[rows[r]];
      if (!together) CopyRow(op.x, rows[r], x, r);
    }
  }

  const HeadLoss& op;
  const int32_t* rows;
  const int64_t n;
  const bool together;
  const View x, dx, logits;
};

}  // namespace

// f(begin, rows of the weight from there on, in the type of x).
template <typename F>
void CpuBackend::ForPanels(const Launch& launch, const HeadLoss& op,
                           const View& panel, F f) const {
  if (IsDirect(op)) {
    f(0, op.weight);
    return;
  }
  for (int64_t begin = 0; begin < op.weight.rows; begin += panel.rows) {
    const int64_t n = std::min(panel.rows, op.weight.rows - begin);
    const View part = panel.Rows(0, n);
    Do(launch, Convert{.x = op.weight.Rows(begin, n), .out = part});
    f(begin, part);
  }
}

// dweight += dlogits^T x.
void CpuBackend::AddWeightGrad(const Launch& launch, const HeadLoss& op,
                               const View& dlogits, const View& x,
                               const View& panel) const {
  if (x.dtype == Dtype::kFloat32) {
    op.gemm(true, dlogits, false, x, true, op.dweight);
    return;
  }
  for (int64_t begin = 0; begin < op.dweight.rows; begin += panel.rows) {
    const int64_t n = std::min(panel.rows, op.dweight.rows - begin);
    const View product = panel.Rows(0, n);
    op.gemm(true, dlogits.Columns(begin, n), false, x, false, product);
    Do(launch, Add{.y = product, .x = op.dweight.Rows(begin, n)});
  }
}

Result CpuBackend::Do(const Launch& launch, const HeadLoss& op) const {
  const Buffers b(op, launch.workspace);
  const bool backward = op.dx.data != nullptr;
  int64_t trained = 0;
  for (int64_t r = 0; r < op.x.rows; ++r) {
    if (op.targets[r] >= 0) {
      b.rows[trained++] = static_cast<int32_t>(r);
      continue;
    }
    op.loss[r] = 0;
    if (backward) {
      std::memset(op.dx.Rows(r, 1).data, 0,
                  op.dx.columns * ElementSize(op.dx.dtype));
    }
  }
  for (int64_t first = 0; first < trained; first += op.chunk) {
    const Chunk c(op, b, first, std::min(op.chunk, trained - first));
    ForPanels(launch, op, b.panel, [&](int64_t begin, const View& w) {
      op.gemm(false, c.x, true, w, false, c.logits.Columns(begin, w.rows));
    });
    Do(launch, CrossEntropy{.logits = c.logits,
                            .targets = b.targets,
                            .options = op.options,
                            .backward = backward,
                            .loss = b.loss});
    for (int64_t r = 0; r < c.n; ++r) op.loss[c.rows[r]] = b.loss[r];
    if (!backward) continue;
    if (op.dweight.data != nullptr) {
      AddWeightGrad(launch, op, c.logits, c.x, b.panel);
    }
    ForPanels(launch, op, b.panel, [&](int64_t begin, const View& w) {
      op.gemm(false, c.logits.Columns(begin, w.rows), false, w, begin > 0,
              c.dx);
    });
    for (int64_t r = 0; r < c.n && !c.together; ++r) {
      CopyRow(c.dx, r, op.dx, c.rows[r]);
    }
  }
  return Result::kOk;
}

int64_t CpuBackend::Room(const HeadLoss& op, int /*threads*/) const {
  return Buffers(op, nullptr).bytes;
}

}  // namespace qlora::kernels
