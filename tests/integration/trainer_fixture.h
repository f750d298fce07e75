// Runs real qlora-trainer processes on real small models.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "qlora/v1/trainer.pb.h"
#include "worker/trainer/gang_runner.h"

namespace qlora::trainer {

class TrainerFixture : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // <directory>/name.
  std::string Path(const std::string& name) const;
  void Write(const std::string& name, const std::string& content) const;
  static std::string Read(const std::string& path);

  // Writes rows of `length` tokens for windows s of the reference run: row i
  // begins at token (i % 971) * 128.
  void WriteShakespeareRows(const std::string& name, int count, int length);

  // A task of mode TRAIN for stories260K in a work directory of its own.
  v1::TrainerTask Task(const std::string& job, int ranks);
  void AddInput(v1::TrainerTask& task, const std::string& name) const;

  struct Run {
    std::vector<RankOutcome> ranks;
    // Of rank 0.
    std::vector<v1::MetricPoint> metrics;
    std::vector<v1::StagedFiles> staged;
    v1::TrainerResult result;
    bool has_result = false;
    v1::TrainerFailure failure;
    std::vector<std::string> logs;
  };
  Run RunTask(const v1::TrainerTask& task, Gang::OnEvent on_event = nullptr,
              const Gang::AdjustTask& adjust = nullptr);

  std::string directory_;
  int tasks_ = 0;
};

}  // namespace qlora::trainer
