// AdamW and sums of squares: a block for each chunk of the flat buffers, the
// parameters' and moments' bytes as the reference's. Sums of chunks are added
// in order by one more block, so they depend on no device.
#include "kernels/adamw_factors.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/exact.cuh"

namespace qlora::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 4096;
static_assert(kChunk % (4 * kThreads) == 0 && kChunk % kMomentBlockSize == 0);
static_assert(kMomentBlockSize == kThreads);

struct Element {
  float param, grad, exp_avg, exp_avg_sq;
};

__device__ void UpdateMoments(const AdamWFactors& f, float clip, Element* e) {
  const float g = __fmul_rn(e->grad, clip);
  e->exp_avg = __fadd_rn(
      e->exp_avg, __fmul_rn(f.one_minus_beta1, __fsub_rn(g, e->exp_avg)));
  e->exp_avg_sq = __fadd_rn(__fmul_rn(e->exp_avg_sq, f.beta2),
                            __fmul_rn(__fmul_rn(f.one_minus_beta2, g), g));
}

__device__ void UpdateParam(const AdamWFactors& f, Element* e) {
  const float denominator = __fadd_rn(
      __fdiv_rn(__fsqrt_rn(e->exp_avg_sq), f.sqrt_correction2), f.epsilon);
  e->param = __fadd_rn(
      __fmul_rn(e->param, f.keep),
      __fmul_rn(f.minus_step_size, __fdiv_rn(e->exp_avg, denominator)));
}

__device__ double SquareOf(float x) { return double{x} * x; }

// The block's sum to its chunk's place.
__device__ void StoreChunk(double* chunks, int64_t chunk, double sum) {
  sum = BlockSum(sum);
  if (threadIdx.x == 0) chunks[chunk] = sum;
}

// The spans of four that a thread has of a chunk of n elements.
template <typename Body>
__device__ void OverChunk(int64_t chunk, int64_t n, bool packed, Body body) {
  const int64_t begin = chunk * kChunk;
  const int64_t end = Least(n, begin + kChunk);
  for (int64_t i = begin + 4 * threadIdx.x; i < end; i += 4 * kThreads) {
    body(Span<4>(0, i, n, packed));
  }
}

View Flat(float* data, int64_t n) {
  return MakeView(data, Dtype::kFloat32, 1, n);
}

struct FlatAdamW {
  View param, grad, exp_avg, exp_avg_sq;
};

// A factor that only the device knows.
__device__ float ClipOf(const AdamW& op) {
  return op.max_grad_norm > 0
             ? ClipFactor(op.max_grad_norm, sqrt(*op.clip_sum_of_squares))
             : 1.0f;
}

__global__ void __launch_bounds__(kThreads)
    AdamWFloat(AdamW op, FlatAdamW flat, AdamWFactors f, double* chunks,
               bool packed) {
  const float clip = ClipOf(op);
  for (int64_t chunk = blockIdx.x; chunk * kChunk < op.n; chunk += gridDim.x) {
    double squares = 0;
    OverChunk(chunk, op.n, packed, [&](const Span<4>& at) {
      Pack<4> p = at.Load(flat.param), g = at.Load(flat.grad),
              m = at.Load(flat.exp_avg), v = at.Load(flat.exp_avg_sq);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        squares += SquareOf(g.v[j]);
        Element e = {p.v[j], g.v[j], m.v[j], v.v[j]};
        UpdateMoments(f, clip, &e);
        UpdateParam(f, &e);
        p.v[j] = e.param;
        m.v[j] = e.exp_avg;
        v.v[j] = e.exp_avg_sq;
      }
      at.Store(p, flat.param);
      at.Store(Pack<4>{}, flat.grad);
      at.Store(m, flat.exp_avg);
      at.Store(v, flat.exp_avg_sq);
    });
    if (chunks != nullptr) StoreChunk(chunks, chunk, squares);
  }
}

// Codes of a block of kThreads elements, one a thread; threads that are not
// inside have none.
__device__ void Encode(const float* map, bool inside, float value,
                       uint8_t* code, float* scale) {
  const float absmax = BlockMax(inside ? LargerMagnitude(0, value) : 0.0f);
  const float reciprocal = __fdiv_rn(1.0f, absmax);
  if (inside) *code = NearestDynamic(map, __fmul_rn(value, reciprocal));
  if (threadIdx.x == 0) *scale = absmax;
}

__global__ void __launch_bounds__(kThreads)
    AdamWCoded(AdamW op, AdamWFactors f, double* chunks) {
  __shared__ float signed_map[256];
  __shared__ float unsigned_map[256];
  LoadMap(DynamicMap::kSigned, signed_map);
  LoadMap(DynamicMap::kUnsigned, unsigned_map);
  const float clip = ClipOf(op);
  const Moments& m = op.moments;
  for (int64_t chunk = blockIdx.x; chunk * kChunk < op.n; chunk += gridDim.x) {
    double squares = 0;
    const int64_t end = Least(op.n, (chunk + 1) * kChunk);
    for (int64_t begin = chunk * kChunk; begin < end; begin += kThreads) {
      const int64_t i = begin + threadIdx.x;
      const int64_t block = begin / kMomentBlockSize;
      const bool inside = i < end;
      Element e = {};
      if (inside) {
        e = {op.param[i], op.grad[i],
             __fmul_rn(signed_map[m.exp_avg_codes[i]], m.exp_avg_scale[block]),
             __fmul_rn(unsigned_map[m.exp_avg_sq_codes[i]],
                       m.exp_avg_sq_scale[block])};
        squares += SquareOf(e.grad);
        UpdateMoments(f, clip, &e);
        UpdateParam(f, &e);
        op.param[i] = e.param;
        op.grad[i] = 0;
      }
      // The scales are read by all before the first barrier within.
      Encode(signed_map, inside, e.exp_avg, m.exp_avg_codes + i,
             m.exp_avg_scale + block);
      Encode(unsigned_map, inside, e.exp_avg_sq, m.exp_avg_sq_codes + i,
             m.exp_avg_sq_scale + block);
    }
    if (chunks != nullptr) StoreChunk(chunks, chunk, squares);
  }
}

__global__ void __launch_bounds__(kThreads)
    Squares(View x, int64_t n, double* chunks, bool packed) {
  for (int64_t chunk = blockIdx.x; chunk * kChunk < n; chunk += gridDim.x) {
    double squares = 0;
    OverChunk(chunk, n, packed, [&](const Span<4>& at) {
      const Pack<4> values = at.Load(x);
#pragma unroll
      for (int j = 0; j < 4; ++j) squares += SquareOf(values.v[j]);
    });
    StoreChunk(chunks, chunk, squares);
  }
}

// One block.
__global__ void __launch_bounds__(kThreads)
    AddChunks(const double* chunks, int64_t count, double* sum) {
  double mine = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) mine += chunks[i];
  mine = BlockSum(mine);
  if (threadIdx.x == 0) *sum = mine;
}

int64_t ChunkCount(int64_t n) { return CeilDiv(n, kChunk); }

Result FinishSum(const Launch& launch, int64_t n, double* sum) {
  return Queue(launch, 1, kThreads, AddChunks,
               static_cast<const double*>(launch.workspace), ChunkCount(n),
               sum);
}

}  // namespace

int64_t Cuda::Room(const AdamW& op, int /*threads*/) const {
  return op.grad_sum_of_squares == nullptr ? 0 : ChunkCount(op.n) * 8;
}

int64_t Cuda::Room(const SumOfSquares& op, int /*threads*/) const {
  return ChunkCount(op.n) * 8;
}

Result Cuda::Do(const Launch& launch, const AdamW& op) const {
  const bool summed = op.grad_sum_of_squares != nullptr;
  double* chunks = summed ? static_cast<double*>(launch.workspace) : nullptr;
  const AdamWFactors factors = UnclippedFactorsOf(op);
  const dim3 grid = GridOver(ChunkCount(op.n));
  const Moments& m = op.moments;
  Result result;
  if (m.exp_avg == nullptr) {
    result = Queue(launch, grid, kThreads, AdamWCoded, op, factors, chunks);
  } else {
    const FlatAdamW flat = {Flat(op.param, op.n), Flat(op.grad, op.n),
                            Flat(m.exp_avg, op.n), Flat(m.exp_avg_sq, op.n)};
    const bool packed = IsPacked(op.param) && IsPacked(op.grad) &&
                        IsPacked(m.exp_avg) && IsPacked(m.exp_avg_sq);
    result = Queue(launch, grid, kThreads, AdamWFloat, op, flat, factors,
                   chunks, packed);
  }
  if (result != Result::kOk || !summed) return result;
  return FinishSum(launch, op.n, op.grad_sum_of_squares);
}

Result Cuda::Do(const Launch& launch, const SumOfSquares& op) const {
  const Result result =
      Queue(launch, GridOver(ChunkCount(op.n)), kThreads, Squares,
            Flat(const_cast<float*>(op.x), op.n), op.n,
            static_cast<double*>(launch.workspace), IsPacked(op.x));
  return result == Result::kOk ? FinishSum(launch, op.n, op.sum) : result;
}

}  // namespace qlora::kernels
