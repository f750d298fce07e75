#include "worker/trainer/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "common/base/files.h"
#include "common/base/sha256.h"
#include "worker/trainer/checkpoint/curve.h"

namespace qlora::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() {
    std::string pattern = fs::temp_directory_path() / "qlora-checkpoint-XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
    layout_.tensors = {{"a.lora_A.weight", {2, 3}, 0, 6},
                       {"a.lora_B.weight", {4, 2}, 6, 8}};
    layout_.total = 14;
    params_.resize(14);
    std::iota(params_.begin(), params_.end(), 1.0f);
    m_.assign(14, 0.25f);
    v_.assign(14, 1e-30f);
    metrics_ = dir_ + "/metrics.jsonl";
    std::ofstream(metrics_) << "{\"step\":1}\n";
    state_.job_id = "j-0123456789ab";
    state_.attempt = 2;
    state_.step = 120;
    state_.total_steps = 400;
    state_.world_size = 2;
    state_.base_sha256 = "b";
    state_.dataset_sha256 = "d";
    state_.seed = 42;
    state_.shuffle = false;
    state_.cursor = {1, 30};
    state_.tokens_trained = 1'000'000'007;
    state_.tokens_total = 2'000'000'011;
    state_.first_loss = 4.3099999999999996;
    state_.last_loss = 2.2700000000000001;
    state_.train_seconds = 0.1;
    state_.compute_dtype = "float32";
    state_.deterministic = true;
    state_.versions = {{"qlorad", "0.1.0"}};
  }
  ~CheckpointTest() override { fs::remove_all(dir_); }

  ConstStateBuffers Saved() const { return {params_, m_, v_}; }

  absl::StatusOr<StagedCheckpoint> Stage() const {
    return StageCheckpoint(dir_ + "/staged", state_, layout_, Saved(),
                           metrics_);
  }

  absl::StatusOr<CheckpointState> Load(const std::string& directory) {
    got_params_.assign(14, -1.0f);
    got_m_.assign(14, -1.0f);
    got_v_.assign(14, -1.0f);
    return LoadCheckpoint(directory, layout_, {got_params_, got_m_, got_v_});
  }

  bool Untouched() const {
    return std::all_of(got_params_.begin(), got_params_.end(),
                       [](float x) { return x == -1.0f; });
  }

  std::string dir_;
  std::string metrics_;
  TrainableLayout layout_;
  CheckpointState state_;
  std::vector<float> params_, m_, v_;
  std::vector<float> got_params_, got_m_, got_v_;
};

TEST_F(CheckpointTest, Stage_ThenLoad_RestoresEveryBit) {
  params_[3] = std::numeric_limits<float>::denorm_min();
  params_[4] = -0.0f;
  const auto staged = Stage();
  ASSERT_TRUE(staged.ok()) << staged.status();
  EXPECT_EQ(staged->directory, dir_ + "/staged/120");
  EXPECT_EQ(staged->manifest_sha256,
            *Sha256OfFile(staged->directory + "/manifest.json"));
  EXPECT_THAT(*ListFilesRecursively(dir_ + "/staged"),
              ElementsAre("120/adam_m.safetensors", "120/adam_v.safetensors",
                          "120/manifest.json", "120/manifest.sha256",
                          "120/metrics.jsonl", "120/params.safetensors"));
  const auto state = Load(staged->directory);
  ASSERT_TRUE(state.ok()) << state.status();
  const ConstStateBuffers got = {got_params_, got_m_, got_v_};
  EXPECT_EQ(StateSha256(120, got), StateSha256(120, Saved()));
  EXPECT_NE(StateSha256(121, got), StateSha256(120, Saved()));
  EXPECT_EQ(state->job_id, state_.job_id);
  EXPECT_EQ(state->attempt, 2);
  EXPECT_EQ(state->step, 120);
  EXPECT_EQ(state->total_steps, 400);
  EXPECT_EQ(state->world_size, 2);
  EXPECT_EQ(state->base_sha256, "b");
  EXPECT_EQ(state->dataset_sha256, "d");
  EXPECT_EQ(state->seed, 42u);
  EXPECT_FALSE(state->shuffle);
  EXPECT_EQ(state->cursor, state_.cursor);
  EXPECT_EQ(state->tokens_trained, state_.tokens_trained);
  EXPECT_EQ(state->tokens_total, state_.tokens_total);
  EXPECT_EQ(state->first_loss, state_.first_loss);
  EXPECT_EQ(state->last_loss, state_.last_loss);
  EXPECT_EQ(state->best_eval_loss, std::nullopt);
  EXPECT_EQ(state->train_seconds, 0.1);
  EXPECT_EQ(state->compute_dtype, "float32");
  EXPECT_TRUE(state->deterministic);
  EXPECT_EQ(state->versions, state_.versions);
}

TEST_F(CheckpointTest, Stage_SameStepAgain_Replaces) {
  ASSERT_TRUE(Stage().ok());
  params_[0] = 77;
  const auto second = Stage();
  ASSERT_TRUE(second.ok()) << second.status();
  ASSERT_TRUE(Load(second->directory).ok());
  EXPECT_EQ(got_params_[0], 77);
}

TEST_F(CheckpointTest, Stage_DiskFull_LeavesNothing) {
  rlimit old = {};
  ::getrlimit(RLIMIT_FSIZE, &old);
  ::signal(SIGXFSZ, SIG_IGN);
  // Enough for each tensor file, too little for the manifest.
  for (const rlim_t limit : {rlim_t{64}, rlim_t{700}}) {
    rlimit small = old;
    small.rlim_cur = limit;
    ::setrlimit(RLIMIT_FSIZE, &small);
    const auto staged = Stage();
    ::setrlimit(RLIMIT_FSIZE, &old);
    EXPECT_TRUE(absl::IsResourceExhausted(staged.status())) << staged.status();
    EXPECT_TRUE(fs::is_empty(dir_ + "/staged"));
  }
  fs::remove(metrics_);
  EXPECT_TRUE(absl::IsNotFound(Stage().status()));
  EXPECT_TRUE(fs::is_empty(dir_ + "/staged"));
}

TEST_F(CheckpointTest, Stage_LongCurve_IsThinnedEvenly) {
  constexpr int kSteps = 20000;
  {
    std::ofstream out(metrics_);
    for (int step = 1; step <= kSteps; ++step) {
      out << "{\"step\":" << step
          << (step % 1000 == 0 ? ",\"eval_loss\":1}\n" : "}\n");
    }
  }
  const auto steps = [](const std::string& file) {
    std::vector<std::pair<int, bool>> out;
    std::ifstream in(file);
    for (std::string line; std::getline(in, line);) {
      const auto json = nlohmann::json::parse(line);
      out.emplace_back(json["step"], json.contains("eval_loss"));
    }
    return out;
  };
  const auto kept = steps(Stage()->directory + "/metrics.jsonl");
  EXPECT_GT(kept.size(), kCurveLines / 2);
  EXPECT_LE(kept.size(), kCurveLines + 20);
  EXPECT_EQ(kept.back().first, kSteps);
  EXPECT_EQ(std::ranges::count_if(kept, [](auto s) { return s.second; }), 20);
  int last = 0;
  for (const auto& [step, evaluated] : kept) {
    EXPECT_LE(step - last, 9) << step;
    last = step;
  }
  // What is thinned is copied as it is, and as evenly after a resume.
  fs::copy_file(dir_ + "/staged/120/metrics.jsonl", metrics_,
                fs::copy_options::overwrite_existing);
  EXPECT_EQ(steps(Stage()->directory + "/metrics.jsonl"), kept);
  {
    std::ofstream out(metrics_, std::ios::app);
    for (int step = kSteps + 1; step <= 2 * kSteps; ++step) {
      out << "{\"step\":" << step << "}\n";
    }
  }
  last = 0;
  for (const auto& [step, evaluated] :
       steps(Stage()->directory + "/metrics.jsonl")) {
    EXPECT_LE(step - last, 16) << step;
    last = step;
  }
  EXPECT_EQ(last, 2 * kSteps);
}

TEST_F(CheckpointTest, Load_AnyByteChanged_IsDataLoss) {
  const std::string directory = Stage()->directory;
  const auto files = *ListFilesRecursively(directory);
  ASSERT_EQ(files.size(), 6u);
  for (const std::string& file : files) {
    const std::string path = directory + "/" + file;
    const std::string good = *ReadFile(path);
    for (size_t i = 0; i < good.size(); ++i) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
      std::ofstream(path, std::ios::binary) << bad;
      const auto state = Load(directory);
      ASSERT_TRUE(absl::IsDataLoss(state.status()))
          << file << " byte " << i << ": " << state.status();
      ASSERT_TRUE(Untouched());
    }
    for (const std::string& bad :
         {good.substr(0, good.size() - 1), good + "\n", std::string()}) {
      std::ofstream(path, std::ios::binary) << bad;
      EXPECT_TRUE(absl::IsDataLoss(Load(directory).status())) << file;
    }
    fs::remove(path);
    const absl::Status missing = Load(directory).status();
    EXPECT_TRUE(file == "manifest.json" ? absl::IsNotFound(missing)
                                        : absl::IsDataLoss(missing))
        << missing;
    std::ofstream(path, std::ios::binary) << good;
  }
  EXPECT_TRUE(Load(directory).ok());
}

// A manifest that someone wrote with a right digest but with nonsense inside.
TEST_F(CheckpointTest, Load_ForgedManifest_IsRefused) {
  const std::string directory = Stage()->directory;
  const auto good =
      nlohmann::json::parse(*ReadFile(directory + "/manifest.json"));
  const auto load = [&](const nlohmann::json& manifest) {
    const std::string text = manifest.dump();
    std::ofstream(directory + "/manifest.json") << text;
    std::ofstream(directory + "/manifest.sha256")
        << Sha256Hex(text) << "  manifest.json\n";
    return Load(directory).status();
  };
  EXPECT_TRUE(load(good).ok());
  for (const char* key : {"job", "step", "cursor", "rng", "loss", "chunks"}) {
    auto bad = good;
    bad.erase(key);
    EXPECT_TRUE(absl::IsDataLoss(load(bad))) << key;
    bad[key] = -1;
    EXPECT_TRUE(absl::IsDataLoss(load(bad))) << key;
  }
  auto outside = good;
  outside["chunks"][0]["file"] = "../../etc/passwd";
  EXPECT_TRUE(absl::IsDataLoss(load(outside)));
  auto silent = good;
  silent["chunks"].erase(0);
  EXPECT_THAT(load(silent).message(),
              HasSubstr("does not vouch for params.safetensors"));
  auto newer = good;
  newer["format_version"] = 2;
  EXPECT_TRUE(absl::IsFailedPrecondition(load(newer)));
  auto delta = good;
  delta["chunks"][0]["encoding"] = "delta";
  EXPECT_TRUE(absl::IsFailedPrecondition(load(delta)));
  EXPECT_TRUE(absl::IsDataLoss(load(nlohmann::json::array())));
}

TEST_F(CheckpointTest, Load_OtherLayout_IsFailedPrecondition) {
  const std::string directory = Stage()->directory;
  layout_.tensors[0].name = "b.lora_A.weight";
  const auto renamed = Load(directory);
  EXPECT_TRUE(absl::IsFailedPrecondition(renamed.status()));
  EXPECT_THAT(renamed.status().message(), HasSubstr("'b.lora_A.weight'"));
  layout_.tensors[0] = {"a.lora_A.weight", {3, 2}, 0, 6};
  EXPECT_THAT(Load(directory).status().message(), HasSubstr("[3, 2]"));
  EXPECT_TRUE(Untouched());
  layout_.tensors = {{"a.lora_A.weight", {2, 3}, 0, 6}};
  EXPECT_TRUE(absl::IsFailedPrecondition(Load(directory).status()));
  EXPECT_TRUE(absl::IsNotFound(Load(dir_ + "/absent").status()));
}

}  // namespace
}  // namespace qlora::trainer
