// What all ops have in common, on every tested backend.
#include <string>
#include <type_traits>

#include "tests/unit/kernels/property.h"
#include "tests/unit/kernels/sample_ops.h"

namespace qlora::kernels {
namespace {

template <typename Op>
Result RunSample(const Backend& backend, const Samples::Kind& kind) {
  HostSamples samples(kind);
  return RunWithRoom(backend, {}, SampleOf<Op>(samples));
}

template <typename Op>
void ExpectNothingWritten(const Backend& backend, const Samples::Kind& kind,
                          Result result) {
  HostSamples samples(kind);
  EXPECT_EQ(RunWithRoom(backend, {}, SampleOf<Op>(samples)), result);
  EXPECT_TRUE(samples.AreUntouched());
}

std::string On(const char* op, const Backend& backend) {
  return std::string(op) + " on " + std::string(backend.name());
}

template <typename Op, typename... Ops>
constexpr bool kIsOneOf = (std::is_same_v<Op, Ops> || ...);

class EveryOpTest : public testing::TestWithParam<bool> {};

// Sums of nothing are 0, which is what the samples' hold.
TEST_P(EveryOpTest, NoRows_WriteNothing) {
  ForCommonOps([]<typename Op>(const char* op) {
    for (const Backend* backend : EveryBackend()) {
      SCOPED_TRACE(On(op, *backend));
      EXPECT_EQ(RunSample<Op>(*backend, {.rich = GetParam()}), Result::kOk);
      ExpectNothingWritten<Op>(*backend, {.rows = 0, .rich = GetParam()},
                               Result::kOk);
    }
  });
}

// Attention and the head: devices lack them, in float16 all do.
TEST_P(EveryOpTest, OpsOfCpus_AreUnsupportedElsewhere) {
  ForCpuOps([]<typename Op>(const char* op) {
    for (const Backend* backend : EveryBackend()) {
      SCOPED_TRACE(On(op, *backend));
      const bool is_device = AreDevices() && backend != &ReferenceBackend();
      if (is_device) {
        ExpectNothingWritten<Op>(*backend, {.rich = GetParam()},
                                 Result::kUnsupported);
      } else {
        EXPECT_EQ(RunSample<Op>(*backend, {.rich = GetParam()}), Result::kOk);
        ExpectNothingWritten<Op>(*backend, {.rows = 0, .rich = GetParam()},
                                 Result::kOk);
      }
      ExpectNothingWritten<Op>(*backend,
                               {.dtype = Dtype::kFloat16, .rich = GetParam()},
                               Result::kInvalidArgument);
    }
  });
}

TEST_P(EveryOpTest, Float16_IsUnsupportedOnCpusButWhereQuantized) {
  ForCommonOps([]<typename Op>(const char* op) {
    const Samples::Kind kind = {.dtype = Dtype::kFloat16, .rich = GetParam()};
    for (const Backend* backend : TestedBackends()) {
      SCOPED_TRACE(On(op, *backend));
      if (AreDevices() ||
          kIsOneOf<Op, Quantize, Dequantize, QuantizeInt8Rows,
                   DequantizeInt8Rows, QuantizeDynamic, DequantizeDynamic,
                   EmbeddingBackward, AdamW, SumOfSquares>) {
        EXPECT_EQ(RunSample<Op>(*backend, kind), Result::kOk);
      } else {
        ExpectNothingWritten<Op>(*backend, kind, Result::kUnsupported);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, EveryOpTest, testing::Bool(),
                         [](const auto& suite) {
                           return std::string(suite.param ? "Rich" : "Plain");
                         });

}  // namespace
}  // namespace qlora::kernels
