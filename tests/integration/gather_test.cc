// What sharding costs on the wire, counted in a step of a real shape.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/files.h"
#include "common/spec/model_description.h"
#include "tests/integration/trainer_fixture.h"
#include "worker/trainer/random_model.h"

namespace qlora::trainer {
namespace {

constexpr char kJob[] = R"(
apiVersion: qlora/v1
name: gather
model: {base: random-135m}
method: METHOD
lora: {rank: 4}
data:
  train: [{path: rows.jsonl, format: tokens}]
  max_seq_len: 16
train: {max_steps: 1, global_batch_size: 2, compute_dtype: bfloat16}
)";

class GatherTest : public TrainerFixture {
 protected:
  // The one step of a job on two ranks.
  v1::MetricPoint Step(const std::string& method) {
    v1::TrainerTask task =
        Task(absl::StrReplaceAll(kJob, {{"METHOD", method}}), 2);
    task.set_model_directory(Path("model"));
    AddInput(task, "rows.jsonl");
    const Run run = RunTask(task);
    EXPECT_TRUE(run.has_result) << run.failure.message();
    if (run.metrics.empty()) return v1::MetricPoint();
    const v1::MetricPoint& point = run.metrics[0];
    std::printf("135M, %s, 2 ranks: peak %ld MiB, planned %ld MiB\n",
                method.c_str(), point.memory_bytes() >> 20,
                point.planned_memory_bytes() >> 20);
    EXPECT_LE(point.memory_bytes(), point.planned_memory_bytes());
    return point;
  }
};

TEST_F(GatherTest, PackedBlocksOf135M_AreAtMost0265OfTheirBfloat16Bytes) {
  ASSERT_TRUE(CreateDirectories(Path("model")).ok());
  ASSERT_TRUE(WriteRandomModel(Path("model"), kLlama135M).ok());
  Write("rows.jsonl",
        "{\"input_ids\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}\n"
        "{\"input_ids\": [16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1]}\n");
  const ModelDescription m = *ReadModelDescription(Path("model"));
  int64_t elements = 2 * m.hidden_size;
  for (const LinearShape& l : BlockLinears(m)) {
    elements += l.in_features * l.out_features;
  }
  const v1::MetricPoint packed = Step("qlora");
  // Forward gathers all; the three last are still there for the backward.
  EXPECT_EQ(packed.gathered_blocks(), 2 * m.num_layers - 3);
  const double ratio =
      static_cast<double>(packed.gathered_block_bytes()) /
      static_cast<double>(packed.gathered_blocks() * elements * 2);
  std::printf(
      "135M, 2 ranks, one step: %ld blocks gathered in %ld bytes, %.4f of "
      "their bfloat16 bytes; embedding and norm, once: %ld bytes\n",
      packed.gathered_blocks(), packed.gathered_block_bytes(), ratio,
      packed.gathered_other_bytes());
  EXPECT_LE(ratio, 0.265);
  EXPECT_GT(ratio, 0.25);
  EXPECT_EQ(packed.gathered_other_bytes(),
            m.vocab_size * m.hidden_size * 2 + m.hidden_size * 4);

  // The same step without quantization gathers the bfloat16 bytes themselves.
  const v1::MetricPoint dense = Step("lora");
  EXPECT_EQ(dense.gathered_blocks(), packed.gathered_blocks());
  EXPECT_NEAR(static_cast<double>(dense.gathered_block_bytes()) /
                  static_cast<double>(dense.gathered_blocks() * elements * 2),
              1, 1e-3);
}

}  // namespace
}  // namespace qlora::trainer
