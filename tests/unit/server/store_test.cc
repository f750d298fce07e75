#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "core_harness.h"
#include "server/store/migrations.h"
#include "server/store/sqlite_store.h"

namespace qlora::server {
namespace {

using ::testing::HasSubstr;

Job MakeJob(const std::string& id) {
  Job job;
  job.mutable_job().set_job_id(id);
  job.mutable_job().set_project("default");
  job.mutable_job().set_resolved_job_file(
      ResolvedJobFile(ParseJobFile(JobFile()).spec));
  job.plan = MakePlan(job.record).value();
  return job;
}

class StoreTest : public ::testing::Test {
 protected:
  StoreTest() { Reopen(); }
  void Reopen() {
    store_.reset();
    store_ = SqliteStore::Open(path()).value();
    state_ = store_->Load().value();
  }
  std::string path() const { return dir_.path() + "/db"; }

  absl::Status Commit(const std::function<void(Draft&)>& f,
                      std::optional<RequestResult> request = {}) {
    Draft draft(state_, absl::FromUnixSeconds(1000), 0);
    f(draft);
    Transaction transaction;
    transaction.draft = &draft;
    transaction.request = std::move(request);
    transaction.now = draft.now;
    const absl::Status status = store_->Commit(transaction);
    if (status.ok()) std::move(draft).ApplyTo(state_);
    return status;
  }
  absl::Status PutJob(const std::string& id, qlora::v1::JobState state,
                      int64_t head = 0, int attempt = 0) {
    return Commit([&](Draft& d) {
      Job job = MakeJob(id);
      job.mutable_job().set_state(state);
      job.mutable_job().set_head_step(head);
      job.mutable_job().set_attempt(attempt);
      d.jobs.Put(id, job);
    });
  }
  absl::Status PutAttempt(const std::string& job, int number,
                          AttemptState state, const std::string& device) {
    return Commit([&](Draft& d) {
      AttemptRecord attempt;
      attempt.set_job_id(job);
      attempt.set_attempt(number);
      attempt.set_state(state);
      auto& rank = *attempt.add_ranks();
      rank.set_node("n1");
      rank.set_device(device);
      d.attempts.Put({job, number}, attempt);
    });
  }

  TempDir dir_;
  std::unique_ptr<SqliteStore> store_;
  State state_;
};

TEST_F(StoreTest, Reopen_KeepsEverythingAndTheTermGrows) {
  const std::string cluster = state_.cluster_id;
  const int64_t term = state_.term;
  ASSERT_TRUE(Commit([](Draft& d) {
                QueueJob(d, MakeJob("j-1"));
                Node node;
                node.record.mutable_node()->set_name("n1");
                d.nodes.Put("n1", node);
                d.Send("n1", {});
                d.Send("n1", {});
                qlora::v1::Model model;
                model.set_name("m");
                d.models.Put("m", model);
                qlora::v1::Dataset dataset;
                dataset.set_name("d");
                d.datasets.Put("d", dataset);
              }).ok());
  Transaction acks;
  acks.events["n1"] = 12;
  acks.command_acks["n1"] = 1;
  ASSERT_TRUE(store_->Commit(acks).ok());
  Reopen();
  EXPECT_EQ(state_.cluster_id, cluster);
  EXPECT_GT(state_.term, term);
  EXPECT_EQ(state_.jobs.at("j-1").job().state(), qlora::v1::JOB_STATE_QUEUED);
  EXPECT_EQ(state_.nodes.at("n1").record.last_event(), 12u);
  ASSERT_EQ(state_.outbox.at("n1").size(), 1u);
  EXPECT_EQ(state_.outbox.at("n1").front()->number(), 2u);
  EXPECT_EQ(state_.outbox.at("n1").front()->term(), state_.term);
  EXPECT_TRUE(state_.models.contains("m"));
  EXPECT_TRUE(state_.datasets.contains("d"));
}

// Of what began before and after the copy was made, each is known by its term.
TEST_F(StoreTest, CopiesOfOneDatabase_TakeDifferentTerms) {
  store_.reset();
  std::set<int64_t> terms;
  for (const char* name : {"/copy-1", "/copy-2"}) {
    std::filesystem::copy_file(path(), dir_.path() + name);
    const auto store = SqliteStore::Open(dir_.path() + name).value();
    const State state = store->Load().value();
    EXPECT_EQ(state.cluster_id, state_.cluster_id);
    EXPECT_GT(state.term, state_.term);
    terms.insert(state.term);
    terms.insert(store->RaiseTerm(state_.term).value());
  }
  EXPECT_EQ(terms.size(), 4u);
}

TEST_F(StoreTest, Request_IsFoundWithItsResult) {
  ASSERT_TRUE(Commit([](Draft& d) { QueueJob(d, MakeJob("j-1")); },
                     RequestResult{"r1", "digest", std::string("a\0b", 3)})
                  .ok());
  Reopen();
  const auto found = store_->FindRequest("r1").value();
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->digest, "digest");
  EXPECT_EQ(found->response, std::string("a\0b", 3));
  EXPECT_FALSE(store_->FindRequest("r2").value().has_value());
}

TEST_F(StoreTest, FailedTransaction_StoresNothing) {
  ASSERT_TRUE(PutJob("j-1", qlora::v1::JOB_STATE_FAILED).ok());
  EXPECT_FALSE(Commit(
                   [](Draft& d) {
                     d.jobs.Mutable("j-1")->mutable_job().set_state(
                         qlora::v1::JOB_STATE_RUNNING);
                     QueueJob(d, MakeJob("j-2"));
                   },
                   RequestResult{"r1", "d", "x"})
                   .ok());
  Reopen();
  EXPECT_FALSE(state_.jobs.contains("j-2"));
  EXPECT_FALSE(store_->FindRequest("r1").value().has_value());
  EXPECT_TRUE(PutJob("j-3", qlora::v1::JOB_STATE_QUEUED).ok());
}

TEST_F(StoreTest, TerminalJob_StaysSo) {
  ASSERT_TRUE(PutJob("j-1", qlora::v1::JOB_STATE_SUCCEEDED).ok());
  const absl::Status status = PutJob("j-1", qlora::v1::JOB_STATE_QUEUED);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("terminal job"));
}

TEST_F(StoreTest, HeadStepAndAttempt_NeverGoBack) {
  ASSERT_TRUE(PutJob("j-1", qlora::v1::JOB_STATE_RUNNING, 10, 2).ok());
  EXPECT_FALSE(PutJob("j-1", qlora::v1::JOB_STATE_RUNNING, 9, 2).ok());
  EXPECT_FALSE(PutJob("j-1", qlora::v1::JOB_STATE_RUNNING, 10, 1).ok());
  EXPECT_TRUE(PutJob("j-1", qlora::v1::JOB_STATE_RUNNING, 11, 3).ok());
}

TEST_F(StoreTest, Job_HasOneLiveAttempt) {
  ASSERT_TRUE(PutAttempt("j-1", 1, ATTEMPT_STATE_RUNNING, "cpu:0").ok());
  EXPECT_FALSE(PutAttempt("j-1", 2, ATTEMPT_STATE_PREPARING, "cpu:1").ok());
  ASSERT_TRUE(PutAttempt("j-1", 1, ATTEMPT_STATE_FAILED, "cpu:0").ok());
  EXPECT_TRUE(PutAttempt("j-1", 2, ATTEMPT_STATE_PREPARING, "cpu:1").ok());
  EXPECT_FALSE(PutAttempt("j-1", 1, ATTEMPT_STATE_RUNNING, "cpu:0").ok());
}

TEST_F(StoreTest, Device_IsReservedOnce) {
  ASSERT_TRUE(PutAttempt("j-1", 1, ATTEMPT_STATE_RUNNING, "cpu:0").ok());
  EXPECT_FALSE(PutAttempt("j-2", 1, ATTEMPT_STATE_PREPARING, "cpu:0").ok());
  ASSERT_TRUE(PutAttempt("j-1", 1, ATTEMPT_STATE_LOST, "cpu:0").ok());
  EXPECT_TRUE(PutAttempt("j-2", 1, ATTEMPT_STATE_PREPARING, "cpu:0").ok());
}

TEST_F(StoreTest, Checkpoint_OfAnOldAttemptOrStep_IsRejected) {
  ASSERT_TRUE(PutJob("j-1", qlora::v1::JOB_STATE_RUNNING, 10, 2).ok());
  const auto put = [&](int attempt, int64_t step) {
    return Commit([&](Draft& d) {
      qlora::v1::Checkpoint checkpoint;
      checkpoint.set_job_id("j-1");
      checkpoint.set_attempt(attempt);
      checkpoint.set_step(step);
      checkpoint.set_state(qlora::v1::CHECKPOINT_STATE_COMMITTED);
      d.checkpoints.Put({"j-1", step}, checkpoint);
    });
  };
  EXPECT_EQ(put(1, 10).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(put(2, 9).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(put(2, 10).ok());
}

TEST_F(StoreTest, OlderTerm_CannotWrite) {
  auto second = SqliteStore::Open(path()).value();
  ASSERT_TRUE(second->Load().ok());
  const absl::Status status = PutJob("j-1", qlora::v1::JOB_STATE_QUEUED);
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
}

TEST_F(StoreTest, NewerSchema_IsRefused) {
  {
    Database db = Database::Open(path()).value();
    ASSERT_TRUE(db.Execute("UPDATE schema_version SET version = 999").ok());
  }
  store_.reset();
  const absl::Status status = SqliteStore::Open(path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("newer"));
}

TEST_F(StoreTest, FileThatIsNoDatabase_IsNamed) {
  const std::string other = dir_.path() + "/other";
  ASSERT_TRUE(WriteFileAtomically(other, std::string(5000, 'x')).ok());
  EXPECT_EQ(SqliteStore::Open(other).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(StoreTest, Writable_IsChecked) {
  EXPECT_TRUE(store_->CheckWritable().ok());
}

}  // namespace
}  // namespace qlora::server
