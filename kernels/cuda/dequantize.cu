// Dequantization in one launch: a thread takes the codes of 16 output bytes
// (4 of codes for the narrow types, 2 for float32), so that loads and stores of
// a warp are whole lines, and four of these at a time.
#include <bit>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/exact.cuh"

namespace qlora::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;

// A dequantization as the kernels take it.
struct Expansion {
  float values[16];
  const uint8_t* codes;
  ScalesView scales;
  // Element i is in block i >> block_shift.
  int block_shift;
  // Of the output's first element in the tensor.
  int64_t first;
  View out;
};

Expansion ExpansionOf(const Dequantize& op) {
  Expansion e = {{},
                 op.codes,
                 op.scales,
                 std::countr_zero(static_cast<unsigned>(op.block_size)),
                 op.row_begin * op.out.columns,
                 op.out};
  for (int i = 0; i < 16; ++i) e.values[i] = FourBitValues(op.type)[i];
  return e;
}

// What every block keeps in shared memory.
struct Tables {
  float values[16];
  float map[256];

  // All threads of the block call it.
  __device__ void Fill(const Expansion& e, bool nested) {
    if (threadIdx.x < 16) values[threadIdx.x] = e.values[threadIdx.x];
    if (nested) {
      LoadMap(DynamicMap::kSigned, map);
    } else {
      __syncthreads();
    }
  }
};

template <bool kNested>
__device__ float ScaleOf(const ScalesView& scales, const Tables& tables,
                         int64_t block) {
  if (!kNested) return scales.absmax[block];
  const float product = Product(tables.map[scales.absmax_codes[block]],
                                scales.absmax_scale[block / kNestedBlockSize]);
  return Sum(product, *scales.offset);
}

// Elements [i, i + count) of the tensor to place `at` of the output, one by
// one: any parity, blocks and length, scales that are not finite.
template <bool kNested>
__device__ void ExpandSlowly(const Expansion& e, const Tables& tables,
                             int64_t i, int count, int64_t at) {
  for (int j = 0; j < count; ++j, ++i) {
    const int code = e.codes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
    const float scale = ScaleOf<kNested>(e.scales, tables, i >> e.block_shift);
    StoreExact(Product(tables.values[code], scale), e.out.data, e.out.dtype,
               at + j);
  }
}

// A group of kSize elements, which are 16 bytes of output.
template <Dtype kType>
struct Group {
  static constexpr int kSize = kType == Dtype::kFloat32 ? 4 : 8;
  uint32_t codes;
  float scale;

  __device__ void LoadCodes(const uint8_t* at) {
    if constexpr (kSize == 8) {
      codes = *reinterpret_cast<const uint32_t*>(at);
    } else {
      codes = *reinterpret_cast<const uint16_t*>(at);
    }
  }
  __device__ void Store(const Tables& tables, void* out, int64_t at) const {
    Pack<kSize> pack;
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      // The first of a byte's two elements is in its upper half.
      const uint32_t code = codes >> ((j ^ 1) * 4) & 15;
      pack.v[j] = __fmul_rn(tables.values[code], scale);
    }
    StorePack<kSize>(pack, out, kType, at);
  }
};

// Rows that are whole groups but for the last one's end, aligned to them.
template <Dtype kType, bool kNested>
__global__ void __launch_bounds__(kThreads, 5) DequantizeGroups(Expansion e) {
  constexpr int kSize = Group<kType>::kSize;
  __shared__ Tables tables;
  tables.Fill(e, kNested);
  const int64_t columns = e.out.columns;
  const int64_t step = int64_t{blockDim.x} * kSize;
  for (int64_t r = blockIdx.y; r < e.out.rows; r += gridDim.y) {
    const int64_t begin = e.first + r * columns;
    for (int64_t tile = blockIdx.x * step * kUnroll; tile < columns;
         tile += gridDim.x * step * kUnroll) {
      const int64_t c = tile + int64_t{threadIdx.x} * kSize;
      Group<kType> groups[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t i = begin + c + u * step;
        if (c + u * step + kSize > columns) continue;
        groups[u].LoadCodes(e.codes + i / 2);
        groups[u].scale =
            ScaleOf<kNested>(e.scales, tables, i >> e.block_shift);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t column = c + u * step;
        if (column >= columns) continue;
        const int64_t at = r * e.out.stride + column;
        const auto count =
            static_cast<int>(Least<int64_t>(kSize, columns - column));
        if (count == kSize && isfinite(groups[u].scale)) {
          groups[u].Store(tables, e.out.data, at);
        } else {
          ExpandSlowly<kNested>(e, tables, begin + column, count, at);
        }
      }
    }
  }
}

// Any rows, an element a thread.
template <bool kNested>
__global__ void __launch_bounds__(kElementThreads, 5)
    DequantizeAny(Expansion e) {
  __shared__ Tables tables;
  tables.Fill(e, kNested);
  const int64_t columns = e.out.columns;
  OverElements<1>(e.out.rows, columns, false, [&](const Span<1>& at) {
    ExpandSlowly<kNested>(e, tables, e.first + at.r * columns + at.c, 1,
                          at.r * e.out.stride + at.c);
  });
}

bool IsAligned(const void* p, int bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<unsigned>(bytes) == 0;
}

// Rows without a gap between them are one long row.
void Flatten(View* v) {
  if (v->stride != v->columns) return;
  v->columns *= v->rows;
  v->stride = v->columns;
  v->rows = 1;
}

template <Dtype kType, bool kNested>
Result Expand(const Launch& launch, Expansion e) {
  constexpr int kSize = Group<kType>::kSize;
  Flatten(&e.out);
  const View& out = e.out;
  const bool aligned = IsPacked(out, kSize) && IsAligned(e.codes, kSize / 2) &&
                       e.first % kSize == 0 &&
                       (out.rows == 1 || out.columns % kSize == 0);
  if (!aligned) {
    return Queue(launch, ElementGrid(out.rows, out.columns, 1), kElementThreads,
                 DequantizeAny<kNested>, e);
  }
  const int64_t groups = CeilDiv(out.columns, kSize);
  const int64_t warps = CeilDiv(groups, 32 * kUnroll);
  const auto threads =
      static_cast<unsigned>(32 * Least<int64_t>(warps, kThreads / 32));
  return Queue(launch, RowGrid(out.rows, CeilDiv(groups, threads * kUnroll)),
               threads, DequantizeGroups<kType, kNested>, e);
}

template <Dtype kType>
Result Expand(const Launch& launch, const Dequantize& op) {
  const Expansion e = ExpansionOf(op);
  return op.scales.absmax == nullptr ? Expand<kType, true>(launch, e)
                                     : Expand<kType, false>(launch, e);
}

__global__ void __launch_bounds__(kElementThreads)
    DequantizeInt8(DequantizeInt8Rows op) {
  OverElements<1>(op.out.rows, op.out.columns, false, [&](const Span<1>& at) {
    const float code = op.codes[at.r * op.out.columns + at.c];
    const float value = Product(Product(code, op.scale[at.r]), kInt8Step);
    StoreExact(value, op.out.data, op.out.dtype, at.r * op.out.stride + at.c);
  });
}

__global__ void __launch_bounds__(kElementThreads)
    DequantizeMap(DequantizeDynamic op, int block_shift) {
  __shared__ float map[256];
  LoadMap(op.map, map);
  OverElements<1>(1, op.shape.num_elements, false, [&](const Span<1>& at) {
    op.out[at.c] = Product(map[op.codes[at.c]], op.scale[at.c >> block_shift]);
  });
}

}  // namespace

Result Cuda::Do(const Launch& launch, const Dequantize& op) const {
  if (op.out.rows == 0) return Result::kOk;
  switch (op.out.dtype) {
    case Dtype::kFloat32:
      return Expand<Dtype::kFloat32>(launch, op);
    case Dtype::kBfloat16:
      return Expand<Dtype::kBfloat16>(launch, op);
    case Dtype::kFloat16:
      break;
  }
  return Expand<Dtype::kFloat16>(launch, op);
}

Result Cuda::Do(const Launch& launch, const DequantizeInt8Rows& op) const {
  return Queue(launch, ElementGrid(op.out.rows, op.out.columns, 1),
               kElementThreads, DequantizeInt8, op);
}

Result Cuda::Do(const Launch& launch, const DequantizeDynamic& op) const {
  return Queue(launch, ElementGrid(1, op.shape.num_elements, 1),
               kElementThreads, DequantizeMap, op,
               std::countr_zero(static_cast<unsigned>(op.shape.block_size)));
}

}  // namespace qlora::kernels
