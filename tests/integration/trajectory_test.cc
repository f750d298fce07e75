// The reference LoRA run on stories260K, made in float64 by another program.
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/formats/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/integration/trainer_fixture.h"
#include "tests/shared_data.h"

namespace qlora::trainer {
namespace {

class TrajectoryTest : public TrainerFixture {
 protected:
  std::string Reference(const std::string& name) const {
    return absl::StrCat(SharedData(), "/adapters/stories260K-shakespeare-lora/",
                        name);
  }

  // The recorded rows in the recorded order, from the recorded start.
  Run Train(int steps, int ranks) {
    const std::string init = Path("init");
    EXPECT_TRUE(CreateDirectories(init).ok());
    for (const auto& [from, to] :
         {std::pair("adapter_config.json", "adapter_config.json"),
          std::pair("adapter_init.safetensors", "adapter_model.safetensors")}) {
      std::filesystem::copy_file(
          Reference(from), absl::StrCat(init, "/", to),
          std::filesystem::copy_options::overwrite_existing);
    }
    WriteShakespeareRows("rows.jsonl", steps * 8, 129);
    const std::string job = R"(
apiVersion: qlora/v1
name: trajectory
model: {base: stories260K}
method: lora
lora: {rank: 8, alpha: 16, dropout: 0, init_adapter: init}
data:
  train: [{path: rows.jsonl, format: tokens}]
  max_seq_len: 129
  packing: false
  shuffle: false
train:
  epochs: 1
  global_batch_size: 8
  learning_rate: 2e-3
  lr_scheduler: constant
  weight_decay: 0.01
  max_grad_norm: 1.0
  compute_dtype: float32
)";
    v1::TrainerTask task = Task(job, ranks);
    AddInput(task, "rows.jsonl");
    AddInput(task, "init");
    output_ = task.work_directory() + "/output";
    return RunTask(task);
  }

  // Largest |ours - reference| of a tensor over the largest |reference|.
  void ExpectAdapterNear(const std::string& reference, double tolerance) {
    const auto expected = SafetensorsReader::Open(Reference(reference));
    const auto actual =
        SafetensorsReader::Open(output_ + "/adapter_model.safetensors");
    ASSERT_TRUE(expected.ok() && actual.ok()) << actual.status();
    ASSERT_EQ((*actual)->tensors().size(), (*expected)->tensors().size());
    for (const TensorInfo& t : (*expected)->tensors()) {
      std::vector<float> want(t.num_elements()), got(t.num_elements());
      ASSERT_TRUE((*expected)->ReadFloat32(t.name, want).ok());
      ASSERT_TRUE((*actual)->ReadFloat32(t.name, got).ok()) << t.name;
      double largest = 0, difference = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        largest = std::max(largest, std::fabs(double{want[i]}));
        difference = std::max(difference, std::fabs(double{want[i]} - got[i]));
      }
      EXPECT_LE(difference, tolerance * largest) << t.name;
    }
  }

  std::string output_;
};

TEST_F(TrajectoryTest, AllSteps_LossesAndNormsAsRecorded) {
  const auto recorded =
      nlohmann::json::parse(Read(Reference("trajectory.json")));
  const Run run = Train(400, 1);
  ASSERT_EQ(run.metrics.size(), 400u) << run.failure.message();
  double worst_loss = 0, worst_norm = 0;
  for (size_t i = 0; i < run.metrics.size(); ++i) {
    const double loss = recorded["losses"][i];
    const double norm = recorded["grad_norms"][i];
    worst_loss =
        std::max(worst_loss, std::fabs(run.metrics[i].loss() / loss - 1));
    worst_norm =
        std::max(worst_norm, std::fabs(run.metrics[i].grad_norm() / norm - 1));
  }
  RecordProperty("worst_loss", absl::StrCat(worst_loss));
  RecordProperty("worst_norm", absl::StrCat(worst_norm));
  std::printf("largest relative error: loss %.2g, gradient norm %.2g\n",
              worst_loss, worst_norm);
  EXPECT_LE(worst_loss, 5e-6);
  EXPECT_LE(worst_norm, 3e-5);
  ExpectAdapterNear("adapter_model.safetensors", 2e-3);
}

TEST_F(TrajectoryTest, FirstSteps_AdaptersAsRecorded) {
  for (const int steps : {1, 10, 50}) {
    const Run run = Train(steps, 2);
    ASSERT_TRUE(run.has_result) << run.failure.message();
    ExpectAdapterNear(absl::StrCat("adapter_step", steps, ".safetensors"),
                      1e-3);
  }
}

}  // namespace
}  // namespace qlora::trainer
