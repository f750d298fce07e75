#include "tests/integration/trainer_fixture.h"

#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "nlohmann/json.hpp"
#include "tests/shared_data.h"

namespace qlora::trainer {

void TrainerFixture::SetUp() {
  SKIP_WITHOUT_SHARED_DATA();
  std::string test =
      ::testing::UnitTest::GetInstance()->current_test_info()->name();
  std::ranges::replace(test, '/', '-');
  directory_ =
      absl::StrCat(::testing::TempDir(), "/trainer-", getpid(), "-", test);
  ASSERT_TRUE(CreateDirectories(directory_).ok());
}

void TrainerFixture::TearDown() {
  if (!directory_.empty()) RemoveRecursively(directory_).IgnoreError();
}

std::string TrainerFixture::Path(const std::string& name) const {
  return absl::StrCat(directory_, "/", name);
}

void TrainerFixture::Write(const std::string& name,
                           const std::string& content) const {
  ASSERT_TRUE(WriteFileAtomically(Path(name), content).ok());
}

std::string TrainerFixture::Read(const std::string& path) {
  const auto content = ReadFile(path);
  EXPECT_TRUE(content.ok()) << content.status();
  return content.value_or("");
}

void TrainerFixture::WriteShakespeareRows(const std::string& name, int count,
                                          int length) {
  constexpr int kWindow = 128;
  constexpr int kWindows = 971;
  const auto ids = nlohmann::json::parse(Read(
      SharedData() + "/adapters/stories260K-shakespeare-lora/train_ids.json"));
  std::string lines;
  for (int row = 0; row < count; ++row) {
    const auto begin = ids.begin() + (row % kWindows) * kWindow;
    const nlohmann::json line = {
        {"input_ids", std::vector<int>(begin, begin + length)}};
    lines += line.dump() + "\n";
  }
  Write(name, lines);
}

v1::TrainerTask TrainerFixture::Task(const std::string& job, int ranks) {
  v1::TrainerTask task;
  task.set_mode(v1::TRAINER_MODE_TRAIN);
  task.set_job_id("j-test");
  task.set_attempt(1);
  task.mutable_job_create_time()->set_seconds(1'721'952'000);
  task.set_job_file(job);
  task.set_model_directory(SharedData() + "/models/stories260K");
  task.set_work_directory(Path(absl::StrCat("work", ++tasks_)));
  task.set_token_cache_directory(Path("tokens"));
  task.set_world_size(ranks);
  task.set_threads(1);
  task.set_device("cpu:0");
  return task;
}

void TrainerFixture::AddInput(v1::TrainerTask& task,
                              const std::string& name) const {
  v1::LocalInput& input = *task.add_inputs();
  input.set_name(name);
  input.set_path(Path(name));
}

TrainerFixture::Run TrainerFixture::RunTask(const v1::TrainerTask& task,
                                            Gang::OnEvent on_event,
                                            const Gang::AdjustTask& adjust) {
  Run run;
  auto gang = Gang::Start(QLORA_BINARY_DIR "/bin/qlora-trainer", task,
                          std::move(on_event), adjust);
  EXPECT_TRUE(gang.ok()) << gang.status();
  if (!gang.ok()) return run;
  run.ranks = (*gang)->Wait();
  for (const v1::TrainerEvent& event : run.ranks[0].events) {
    if (event.has_metrics()) run.metrics.push_back(event.metrics());
    if (event.has_staged()) run.staged.push_back(event.staged());
    if (event.has_failure()) run.failure = event.failure();
    if (event.has_log()) run.logs.push_back(event.log().text());
    if (event.has_result()) {
      run.result = event.result();
      run.has_result = true;
    }
  }
  return run;
}

}  // namespace qlora::trainer
