#include "worker/trainer/ops/linear.h"

#include "worker/trainer/ops/dropout.h"
#include "worker/trainer/ops/gemm.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/rows.h"
#include "worker/trainer/run_op.h"

namespace qlora::trainer {
namespace {

View AsCompute(const float* data, int64_t rows, int64_t columns, Dtype dtype,
               void* buffer) {
  const View master = FloatView(data, rows, columns);
  if (dtype == Dtype::kFloat32) return master;
  const View out = MakeView(buffer, dtype, rows, columns);
  Convert(master, out);
  return out;
}

// The adapter's matrices in the compute type; one at a time in bfloat16.
View LoraA(const LinearCall& c, Dtype dtype) {
  return AsCompute(c.lora.a, c.lora.rank, c.weight.in_features, dtype,
                   c.scratch.lora);
}
View LoraB(const LinearCall& c, Dtype dtype) {
  return AsCompute(c.lora.b, c.weight.out_features, c.lora.rank, dtype,
                   c.scratch.lora);
}

// x, or x with elements dropped, in scratch.
View AdapterInput(const LinearCall& c, const View& x) {
  const DropoutMask& mask = c.lora.dropout;
  if (mask.probability == 0) return x;
  const View dropped = MakeView(c.scratch.dropped, x.dtype, x.rows, x.columns);
  ApplyDropout(x, mask.row_keys, mask.module, mask.probability, false, dropped);
  return dropped;
}

// scale * dY B.
View NarrowGrad(const LinearCall& c, const View& like) {
  return MakeView(c.scratch.narrow, like.dtype, like.rows, c.lora.rank);
}

// grad += alpha * a^T b; through `buffer` where the product is not float32.
void AddProduct(const View& a, const View& b, float alpha, void* buffer,
                float* grad) {
  const View sum = FloatView(grad, a.columns, b.columns);
  if (a.dtype == Dtype::kFloat32) {
    Gemm(Op::kTransposed, a, Op::kPlain, b, alpha, 1, sum);
    return;
  }
  const View product = MakeView(buffer, a.dtype, a.columns, b.columns);
  Gemm(Op::kTransposed, a, Op::kPlain, b, alpha, 0, product);
  AddTo(product, sum);
}

void Multiply(const LinearCall& call, const View& x, const View& y, bool add,
              const View& xa) {
  const LinearWeight& weight = call.weight;
  if (weight.bias != nullptr) {
    if (add) {
      AddRow(weight.bias, y);
    } else {
      FillRows(weight.bias, y);
    }
  }
  const View w = MaterializeRows(weight, 0, weight.out_features, x.dtype,
                                 call.scratch.weight);
  const bool keep = add || weight.bias != nullptr;
  Gemm(Op::kPlain, x, Op::kTransposed, w, 1, keep ? 1 : 0, y);
  if (call.lora.rank == 0) return;
  Gemm(Op::kPlain, xa, Op::kTransposed, LoraB(call, x.dtype), call.lora.scale,
       1, y);
}

}  // namespace

View StoredTable(const LinearWeight& weight) {
  const Dtype dtype = weight.format == WeightFormat::kFloat32
                          ? Dtype::kFloat32
                          : Dtype::kBfloat16;
  return MakeView(const_cast<void*>(weight.data), dtype, weight.out_features,
                  weight.in_features);
}

View MaterializeRows(const LinearWeight& weight, int64_t row_begin,
                     int64_t row_end, Dtype dtype, void* buffer) {
  const int64_t rows = row_end - row_begin;
  const int64_t columns = weight.in_features;
  const View out = MakeView(buffer, dtype, rows, columns);
  if (weight.format == WeightFormat::kNf4) {
    RunOp(KernelLaunch(),
          kernels::Dequantize{.codes = static_cast<const uint8_t*>(weight.data),
                              .scales = weight.scales,
                              .rows = weight.out_features,
                              .block_size = weight.block_size,
                              .row_begin = row_begin,
                              .out = out});
    return out;
  }
  const View part = StoredTable(weight).Rows(row_begin, rows);
  if (part.dtype == dtype) return part;
  Convert(part, out);
  return out;
}

void AdapterInputProduct(const LinearCall& call, const View& x, void* xa) {
  if (call.lora.rank == 0) return;
  Gemm(Op::kPlain, AdapterInput(call, x), Op::kTransposed, LoraA(call, x.dtype),
       1, 0, MakeView(xa, x.dtype, x.rows, call.lora.rank));
}

void LinearProduct(const LinearCall& call, const View& x, const View& y,
                   bool add, const void* xa) {
  const View narrow =
      MakeView(const_cast<void*>(xa), x.dtype, x.rows, call.lora.rank);
  if (y.dtype == x.dtype) {
    Multiply(call, x, y, add, narrow);
    return;
  }
  const View product =
      MakeView(call.scratch.output, x.dtype, y.rows, y.columns);
  Multiply(call, x, product, false, narrow);
  AddTo(product, y);
}

void AdapterOutputGrad(const LinearCall& call, const void* xa, const View& dy) {
  const LoraWeights& lora = call.lora;
  if (lora.rank == 0) return;
  Gemm(Op::kPlain, dy, Op::kPlain, LoraB(call, dy.dtype), lora.scale, 0,
       NarrowGrad(call, dy));
  const View narrow =
      MakeView(const_cast<void*>(xa), dy.dtype, dy.rows, lora.rank);
  AddProduct(dy, narrow, lora.scale, call.scratch.weight, lora.db);
}

void AdapterInputGrad(const LinearCall& call, const View& x) {
  if (call.lora.rank == 0) return;
  AddProduct(NarrowGrad(call, x), AdapterInput(call, x), 1, call.scratch.weight,
             call.lora.da);
}

void LinearInputGrad(const LinearCall& call, const View& dy, const View& dx,
                     bool add) {
  const LinearWeight& weight = call.weight;
  Gemm(Op::kPlain, dy, Op::kPlain,
       MaterializeRows(weight, 0, weight.out_features, dy.dtype,
                       call.scratch.weight),
       1, add ? 1 : 0, dx);
  if (call.lora.rank == 0) return;
  const View dnarrow = NarrowGrad(call, dy);
  const View a = LoraA(call, dy.dtype);
  const DropoutMask& mask = call.lora.dropout;
  if (mask.probability == 0) {
    Gemm(Op::kPlain, dnarrow, Op::kPlain, a, 1, 1, dx);
    return;
  }
  const View dropped =
      MakeView(call.scratch.dropped, dx.dtype, dx.rows, dx.columns);
  Gemm(Op::kPlain, dnarrow, Op::kPlain, a, 1, 0, dropped);
  ApplyDropout(dropped, mask.row_keys, mask.module, mask.probability, true, dx);
}

void LinearWeightGrad(const LinearCall& call, const View& x, const View& dy,
                      float* dw, float* db) {
  AddProduct(dy, x, 1, call.scratch.weight, dw);
  if (db != nullptr) AddColumnSums(dy, db);
}

}  // namespace qlora::trainer
