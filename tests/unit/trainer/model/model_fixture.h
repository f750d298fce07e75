// Models in memory for tests: random tensors behind the real sharded source.
#pragma once

#include <unistd.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/base/files.h"
#include "gtest/gtest.h"
#include "tests/unit/trainer/test_model.h"
#include "worker/trainer/data/batch.h"
#include "worker/trainer/model/model.h"
#include "worker/trainer/parallel/sharded_block_source.h"

namespace qlora::trainer {

// A gang of one over a model's files.
struct LoadedModel {
  ModelDescription model;
  std::unique_ptr<SafetensorsReader> reader;
  std::unique_ptr<Communicator> communicator;
  std::unique_ptr<ShardedBlockSource> source;
};

inline std::unique_ptr<LoadedModel> LoadModel(
    const ModelDescription& model, std::unique_ptr<SafetensorsReader> reader,
    const SlabOptions& options) {
  auto loaded = std::make_unique<LoadedModel>();
  loaded->model = model;
  loaded->reader = std::move(reader);
  loaded->communicator = MakeSingleCommunicator();
  auto source =
      ShardedBlockSource::Load(loaded->model, *loaded->reader, options,
                               *loaded->communicator, kernels::SerialFor);
  EXPECT_TRUE(source.ok()) << source.status();
  loaded->source = *std::move(source);
  return loaded;
}

// Writes the tensors to a file that is gone when the source is loaded.
inline std::unique_ptr<LoadedModel> LoadTensors(
    const ModelDescription& model, const std::vector<TestTensor>& tensors,
    const SlabOptions& options) {
  const std::string path =
      absl::StrCat(::testing::TempDir(), "/model-", getpid(), ".safetensors");
  WriteTestModel(path, tensors);
  auto reader = SafetensorsReader::Open(path);
  EXPECT_TRUE(reader.ok()) << reader.status();
  auto loaded = LoadModel(model, *std::move(reader), options);
  unlink(path.c_str());
  return loaded;
}

// Values large enough that every gradient stands clear of rounding.
inline std::vector<TestTensor> StrongTensors(const ModelDescription& model) {
  std::vector<TestTensor> tensors = RandomTensors(model);
  for (TestTensor& t : tensors) {
    const bool norm = t.name.ends_with("norm.weight");
    for (float& v : t.values) v = norm ? 1 + 2 * v : 4 * v;
  }
  return tensors;
}

inline SlabOptions DenseSlabs() { return {.linear = WeightFormat::kFloat32}; }

// Documents of the given lengths; about one target in five is not trained.
inline MicroBatch RandomBatch(const ModelDescription& model,
                              const std::vector<int>& lengths, uint32_t seed) {
  std::mt19937 random(seed);
  MicroBatch batch;
  batch.offsets = {0};
  for (const int length : lengths) {
    for (int i = 0; i < length; ++i) {
      batch.tokens.push_back(static_cast<int32_t>(random() % model.vocab_size));
      const bool trained = i + 1 < length && random() % 5 != 0;
      batch.targets.push_back(
          trained ? static_cast<int32_t>(random() % model.vocab_size)
                  : kIgnoredLabel);
      batch.trained_tokens += trained;
      batch.positions.push_back(i);
    }
    batch.offsets.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  return batch;
}

// Every value random, so that LoRA's B is not zero.
inline std::vector<float> RandomParams(int64_t n, uint32_t seed, float size) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> values(-size, size);
  std::vector<float> params(n);
  for (float& p : params) p = values(random);
  return params;
}

inline ModelOptions LoraModelOptions(const ModelDescription& model,
                                     const std::vector<std::string>& targets,
                                     int64_t max_tokens) {
  ModelOptions options;
  options.method = Method::kLora;
  options.lora.rank = 3;
  options.lora.scale = 1.5;
  options.lora.modules = MatchTargetModules(model, targets).value();
  options.layers.assign(model.num_layers, LayerMemory::kKeep);
  options.max_tokens = max_tokens;
  return options;
}

}  // namespace qlora::trainer
