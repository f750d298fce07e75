#include "worker/trainer/parallel/sharded_block_source.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <thread>

#include "common/base/files.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/unit/trainer/test_model.h"

namespace qlora::trainer {
namespace {

using ::testing::HasSubstr;

class ShardedBlockSourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = absl::StrCat(
        ::testing::TempDir(), "/slab-", getpid(), "-",
        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    ASSERT_TRUE(CreateDirectories(directory_).ok());
  }
  void TearDown() override { RemoveRecursively(directory_).IgnoreError(); }

  std::unique_ptr<SafetensorsReader> Write(
      const std::vector<TestTensor>& tensors) {
    const std::string path = directory_ + "/model.safetensors";
    WriteTestModel(path, tensors);
    return SafetensorsReader::Open(path).value();
  }

  std::string directory_;
};

using Body = std::function<void(ShardedBlockSource&)>;

// Loads as every rank of a gang and runs body on each.
void RunRanks(int ranks, const ModelDescription& model,
              const SafetensorsReader& reader, const SlabOptions& options,
              const Body& body) {
  auto gang = MakeThreadGang(ranks);
  const kernels::ParallelFor serial = kernels::SerialFor;
  std::vector<std::thread> threads;
  for (auto& communicator : gang) {
    threads.emplace_back([&] {
      auto source = ShardedBlockSource::Load(model, reader, options,
                                             *communicator, serial);
      ASSERT_TRUE(source.ok()) << source.status();
      body(**source);
    });
  }
  for (std::thread& t : threads) t.join();
}

// The bytes of all slabs, by the first linear's address.
std::string AllBlocks(ShardedBlockSource& source, int layers) {
  std::string bytes;
  for (int layer = 0; layer < layers; ++layer) {
    source.Prefetch(layer + 1);
    source.Prefetch(layer + 2);
    const auto block = source.Acquire(layer);
    EXPECT_TRUE(block.ok()) << block.status();
    bytes.append(static_cast<const char*>(block->q.data),
                 source.block_layout().bytes);
    source.Release(layer);
  }
  return bytes;
}

TEST_F(ShardedBlockSourceTest, AnyNumberOfRanks_SameBytes) {
  for (const bool tied : {true, false}) {
    const ModelDescription model = SmallModel(tied, !tied);
    const auto reader = Write(RandomTensors(model));
    for (const WeightFormat linear :
         {WeightFormat::kNf4, WeightFormat::kFloat32,
          WeightFormat::kBfloat16}) {
      SlabOptions options;
      options.linear = linear;
      options.double_quant = tied;
      if (linear == WeightFormat::kBfloat16) options.dense = linear;
      std::string expected;
      for (const int ranks : {1, 2, 3, 4}) {
        RunRanks(ranks, model, *reader, options, [&](auto& source) {
          std::string bytes = AllBlocks(source, model.num_layers);
          if (ranks == 1) expected = bytes;
          EXPECT_EQ(bytes, expected) << ranks << " ranks";
          const OuterWeights outer = source.AcquireOuter().value();
          EXPECT_EQ(outer.head.data == outer.embedding.data, tied);
        });
      }
    }
  }
}

TEST_F(ShardedBlockSourceTest, DenseBlock_HasTheFilesValues) {
  const ModelDescription model = SmallModel(false, true);
  const std::vector<TestTensor> tensors = RandomTensors(model);
  const auto reader = Write(tensors);
  SlabOptions options;
  options.linear = WeightFormat::kFloat32;
  const auto expect = [&](const std::string& name, const void* data) {
    for (const TestTensor& t : tensors) {
      if (t.name != name) continue;
      EXPECT_EQ(std::memcmp(data, t.values.data(), t.values.size() * 4), 0)
          << name;
      return;
    }
    ADD_FAILURE() << name;
  };
  RunRanks(3, model, *reader, options, [&](ShardedBlockSource& source) {
    const BlockWeights w = source.Acquire(2).value();
    const std::string prefix = "model.layers.2.";
    expect(prefix + "self_attn.k_proj.weight", w.k.data);
    expect(prefix + "self_attn.v_proj.bias", w.v.bias);
    expect(prefix + "mlp.down_proj.weight", w.down.data);
    expect(prefix + "input_layernorm.weight", w.input_norm);
    expect(prefix + "post_attention_layernorm.weight", w.post_attention_norm);
    EXPECT_EQ(w.o.bias, nullptr);
    EXPECT_EQ(w.down.in_features, 40);
    source.Release(2);
    const OuterWeights outer = source.AcquireOuter().value();
    expect("model.embed_tokens.weight", outer.embedding.data);
    expect("lm_head.weight", outer.head.data);
    expect("model.norm.weight", outer.final_norm);
  });
}

// What decoding uses and what training dequantizes are the same numbers.
TEST_F(ShardedBlockSourceTest, Nf4Values_AreWhatNf4GivesBack) {
  const ModelDescription model = SmallModel(false, true);
  const auto reader = Write(RandomTensors(model));
  for (const bool nested : {true, false}) {
    SlabOptions packed;
    packed.double_quant = nested;
    std::vector<float> expected;
    RunRanks(1, model, *reader, packed, [&](ShardedBlockSource& source) {
      const LinearWeight w = source.Acquire(1).value().up;
      expected.resize(w.out_features * w.in_features);
      EXPECT_EQ(kernels::ReferenceBackend().Run(
                    {},
                    kernels::Dequantize{
                        .codes = static_cast<const uint8_t*>(w.data),
                        .scales = w.scales,
                        .rows = w.out_features,
                        .block_size = w.block_size,
                        .out = kernels::FloatView(
                            expected.data(), w.out_features, w.in_features)}),
                kernels::Result::kOk);
    });
    SlabOptions dense = packed;
    dense.linear = WeightFormat::kFloat32;
    dense.nf4_values = true;
    RunRanks(2, model, *reader, dense, [&](ShardedBlockSource& source) {
      const BlockWeights block = source.Acquire(1).value();
      EXPECT_EQ(block.up.format, WeightFormat::kFloat32);
      EXPECT_EQ(std::memcmp(block.up.data, expected.data(),
                            expected.size() * sizeof(float)),
                0);
    });
  }
}

TEST_F(ShardedBlockSourceTest, ForwardAndBackward_CountsWhatItGathers) {
  const ModelDescription model = SmallModel(true, false);
  const auto reader = Write(RandomTensors(model));
  RunRanks(2, model, *reader, SlabOptions(), [&](ShardedBlockSource& source) {
    EXPECT_EQ(source.counts().gathers, 0);
    for (const int layer : {0, 1, 2, 3, 4, 4, 3, 2, 1, 0}) {
      ASSERT_TRUE(source.Acquire(layer).ok());
      source.Release(layer);
    }
    // Three slabs stay: the backward pass gathers two again.
    EXPECT_EQ(source.counts().gathers, 7);
    EXPECT_EQ(source.counts().block_bytes, 7 * source.gathered_slab_bytes());
    // The tied float32 table and the norm, each filled up to 64 bytes.
    EXPECT_EQ(source.counts().other_bytes, 50 * 24 * 4 + 128);
  });
}

TEST_F(ShardedBlockSourceTest, TooManyAtOnce_IsAnError) {
  const ModelDescription model = SmallModel(true, false);
  const auto reader = Write(RandomTensors(model));
  RunRanks(2, model, *reader, SlabOptions(), [](ShardedBlockSource& source) {
    for (const int layer : {0, 1, 2}) ASSERT_TRUE(source.Acquire(layer).ok());
    EXPECT_EQ(source.Acquire(3).status().code(), absl::StatusCode::kInternal);
  });
}

// The shape of SmolLM-135M.
TEST(SlabLayout, Nf4OfThe135MShape_IsAtMost0265OfBfloat16) {
  ModelDescription m;
  m.vocab_size = 49152;
  m.hidden_size = 576;
  m.intermediate_size = 1536;
  m.num_layers = 30;
  m.num_heads = 9;
  m.num_kv_heads = 3;
  m.head_dim = 64;
  const SlabLayout nf4 = MakeBlockLayout(m, SlabOptions());
  int64_t elements = 0;
  for (const SlabTensor& t : nf4.tensors) elements += t.num_elements();
  EXPECT_LE(static_cast<double>(nf4.bytes), 0.265 * 2 * elements);
}

absl::Status LoadAlone(const ModelDescription& model,
                       const SafetensorsReader& reader) {
  const kernels::ParallelFor serial = kernels::SerialFor;
  const auto single = MakeSingleCommunicator();
  return ShardedBlockSource::Load(model, reader, SlabOptions(), *single, serial)
      .status();
}

TEST_F(ShardedBlockSourceTest, MissingOrWrongTensor_IsNamed) {
  const ModelDescription model = SmallModel(true, false);
  std::vector<TestTensor> tensors = RandomTensors(model);
  ModelDescription larger = model;
  larger.intermediate_size = 41;
  EXPECT_THAT(LoadAlone(larger, *Write(tensors)).ToString(),
              HasSubstr("model.layers.0.mlp.gate_proj.weight has shape [40, "
                        "24]; config.json asks for [41, 24]"));
  const std::string gone = tensors.back().name;
  tensors.pop_back();
  const absl::Status status = LoadAlone(model, *Write(tensors));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.ToString(), HasSubstr(gone));
}

TEST_F(ShardedBlockSourceTest, ValueThatIsNotFinite_IsRefusedByName) {
  const ModelDescription model = SmallModel(true, false);
  std::vector<TestTensor> tensors = RandomTensors(model);
  tensors.back().values[3] = std::nanf("");
  const absl::Status status = LoadAlone(model, *Write(tensors));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.ToString(),
              HasSubstr("tensor " + tensors.back().name +
                        " of the model has values that are not finite"));
}

}  // namespace
}  // namespace qlora::trainer
