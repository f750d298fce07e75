// Drives the core with random events under a virtual clock: nodes that join,
// fall silent, come back with or without their ranks or are removed; ranks that
// fail in every way; users that submit, cancel and delete; a coordinator that
// crashes. After every transaction the invariants of docs/failure_model.md
// hold, and in the end every job ends.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "core_harness.h"
#include "server/core/attempt.h"

namespace qlora::server {
namespace {

class Simulation {
 public:
  explicit Simulation(unsigned seed) : random_(seed) {
    core_.state().timings.backoff_max = absl::Seconds(10);
  }

  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      Step();
      Check();
      if (::testing::Test::HasFailure()) return;
    }
  }

  // No more faults: everything that was submitted ends; what is held is
  // resumed.
  void Settle() {
    calm_ = true;
    for (int i = 0; i < 600 && !AllEnded(); ++i) {
      for (const std::string& node : kNodes) {
        // As an operator does with a node that did not end its ranks.
        if (core_.state().nodes.contains(node) &&
            core_.node(node) == qlora::v1::NODE_STATE_QUARANTINED) {
          Crash(node);
        }
        Tend(node);
      }
      core_.Advance(absl::Seconds(1));
      Check();
      for (const auto& [id, job] : std::map(core_.state().jobs)) {
        if (job.job().state() == qlora::v1::JOB_STATE_HELD) Resume(id);
      }
      if (::testing::Test::HasFailure()) return;
    }
    for (const auto& [id, job] : core_.state().jobs) {
      EXPECT_TRUE(IsTerminal(job.job().state()))
          << id << " is " << ShortName(job.job().state()) << ": "
          << job.job().reason();
    }
  }

  int submitted() const { return submitted_; }
  int resumed() const { return resumed_; }
  int removed() const { return removed_; }

 private:
  const std::vector<std::string> kNodes = {"a", "b", "c"};

  int Roll(int sides) {
    return std::uniform_int_distribution<int>(0, sides - 1)(random_);
  }

  void Step() {
    const std::string node = kNodes[Roll(3)];
    switch (Roll(14)) {
      case 0:
        Submit();
        break;
      case 1:
        if (!jobs_.empty()) Cancel(PickJob());
        break;
      case 2:
        if (!jobs_.empty() && Roll(3) == 0) Delete(PickJob());
        break;
      case 3:
        core_.Advance(absl::Seconds(Roll(60)));
        break;
      case 4:
        if (Connected(node) && Roll(4) == 0) core_.Disconnect(node);
        break;
      case 5:
        if (Roll(5) == 0) Crash(node);
        break;
      case 6:
        if (Roll(10) == 0) core_.Restart();
        break;
      case 7:
        if (!jobs_.empty()) Resume(PickJob());
        break;
      case 8:
        if (!Connected(node) && Roll(2) == 0) Remove(node);
        break;
      default:
        Tend(node);
    }
  }

  bool Connected(const std::string& node) {
    const auto it = core_.state().nodes.find(node);
    return it != core_.state().nodes.end() && it->second.stream != 0;
  }

  std::string PickJob() { return jobs_[Roll(static_cast<int>(jobs_.size()))]; }

  void Submit() {
    static const char* const kShapes[] = {
        "", "priority: 70\n", "resources: {devices_per_node: 2}\n",
        "resources: {nodes: 2}\n",
        "resources: {nodes: 3}\nrestart: {max: 9}\n"};
    jobs_.push_back(core_.Submit(kShapes[Roll(5)]));
    ++submitted_;
  }
  void Cancel(const std::string& id) {
    if (!core_.state().jobs.contains(id)) return;
    core_.Do([&](Draft& d) { (void)CancelJob(d, id, "the simulation"); });
  }
  // Only a HELD job leaves its state, and for the queue.
  void Resume(const std::string& id) {
    if (!core_.state().jobs.contains(id)) return;
    const qlora::v1::Job before = core_.job(id);
    const bool held = before.state() == qlora::v1::JOB_STATE_HELD;
    core_.Do([&](Draft& d) { EXPECT_EQ(ResumeJob(d, id).ok(), held); });
    resumed_ += held;
    if (!held) return;
    if (core_.job(id).state() == qlora::v1::JOB_STATE_STARTING) {
      EXPECT_EQ(core_.job(id).attempt(), before.attempt() + 1);
      EXPECT_EQ(core_.attempt(id).resume_step(), NewestCommitted(id));
    } else {
      EXPECT_EQ(core_.job(id).state(), qlora::v1::JOB_STATE_QUEUED);
    }
  }
  void Delete(const std::string& id) {
    if (!core_.state().jobs.contains(id)) return;
    core_.Do([&](Draft& d) { DeleteJob(d, id); });
  }
  // Refused while ranks of a live attempt count on it.
  void Remove(const std::string& node) {
    core_.Do([&](Draft& d) { removed_ += RemoveNode(d, node).ok(); });
  }
  // The agent dies with its ranks.
  void Crash(const std::string& node) {
    if (Connected(node)) core_.Disconnect(node);
    ++boots_[node];
  }

  std::string Boot(const std::string& node) {
    return "boot-" + std::to_string(boots_[node]);
  }

  // Live attempts with a part of this node's present boot.
  std::vector<std::pair<std::string, int>> Inventory(const std::string& node) {
    std::vector<std::pair<std::string, int>> items;
    for (const auto& [key, attempt] : core_.state().attempts) {
      for (const auto& part : attempt.parts()) {
        if (part.node() == node && part.boot_id() == Boot(node) &&
            !part.ended()) {
          items.emplace_back(key.first, key.second);
        }
      }
    }
    return items;
  }

  // The node does its next thing.
  void Tend(const std::string& node) {
    if (!Connected(node)) {
      ASSERT_TRUE(core_.Join(node, 2, Boot(node), Inventory(node)).ok());
      return;
    }
    core_.Heartbeat(node);
    for (const auto& [job, number] : Inventory(node)) {
      const auto it = core_.state().attempts.find({job, number});
      if (it == core_.state().attempts.end()) continue;
      if (GivenUp(node, it->second)) {
        // Told to end; one that hangs in the kernel does not.
        if (!calm_ && Roll(20) == 0) continue;
        core_.Event(
            node, job, [](auto& e) { e.mutable_ended(); }, number);
      } else if (!IsTerminal(it->second.state())) {
        Progress(node, job, it->second);
      }
    }
  }

  bool GivenUp(const std::string& node, const AttemptRecord& attempt) {
    return std::any_of(
        attempt.parts().begin(), attempt.parts().end(),
        [&](const auto& part) { return part.node() == node && part.lost(); });
  }

  void Progress(const std::string& node, const std::string& job,
                const AttemptRecord& attempt) {
    if (core_.job(job).attempt() != attempt.attempt()) return;
    if (!calm_ && Roll(12) == 0) return Fail(node, job);
    switch (attempt.state()) {
      case ATTEMPT_STATE_PREPARING:
        return core_.Prepared(node, job);
      case ATTEMPT_STATE_READY:
        return core_.Running(node, job);
      case ATTEMPT_STATE_RUNNING:
        return Train(node, job, attempt);
      default:
        return core_.Ended(node, job, qlora::v1::FAILURE_CLASS_UNSPECIFIED,
                           /*stopped=*/true);
    }
  }

  void Fail(const std::string& node, const std::string& job) {
    static constexpr qlora::v1::FailureClass kClasses[] = {
        qlora::v1::FAILURE_CLASS_USER,     qlora::v1::FAILURE_CLASS_NUMERICAL,
        qlora::v1::FAILURE_CLASS_OOM,      qlora::v1::FAILURE_CLASS_INFRA,
        qlora::v1::FAILURE_CLASS_INTERNAL, qlora::v1::FAILURE_CLASS_DISK,
        qlora::v1::FAILURE_CLASS_DRAINED};
    if (core_.attempt(job).resume_step() == 0 || Roll(4) > 0) {
      return core_.Ended(node, job, kClasses[Roll(7)]);
    }
    core_.Event(node, job, [](auto& e) {
      e.mutable_ended()->set_failure_class(qlora::v1::FAILURE_CLASS_INFRA);
      e.mutable_ended()->set_checkpoint_unusable(true);
    });
  }

  int64_t NewestCommitted(const std::string& id) {
    int64_t step = 0;
    for (const auto& [key, checkpoint] : core_.state().checkpoints) {
      if (key.first == id &&
          checkpoint.state() == qlora::v1::CHECKPOINT_STATE_COMMITTED) {
        step = key.second;
      }
    }
    return step;
  }

  void Train(const std::string& node, const std::string& job,
             const AttemptRecord& attempt) {
    if (attempt.final_committed()) {
      return core_.Ended(node, job, qlora::v1::FAILURE_CLASS_UNSPECIFIED);
    }
    // A head that was set aside is replaced.
    const int64_t head = core_.job(job).head_step();
    const int64_t step = NewestCommitted(job) == head ? head + 10 : head;
    const std::vector<qlora::v1::RankAssignment> ranks(attempt.ranks().begin(),
                                                       attempt.ranks().end());
    const int number = attempt.attempt();
    for (const auto& rank : ranks) {
      if (rank.node() != node) continue;
      if (core_.job(job).attempt() != number) return;
      core_.Staged(node, job, rank.rank(), step, step >= 40);
    }
  }

  bool AllEnded() {
    for (const auto& [id, job] : core_.state().jobs) {
      if (!IsTerminal(job.job().state())) return false;
    }
    return true;
  }

  void Check() {
    std::map<std::string, int> live;
    std::set<std::pair<std::string, std::string>> devices;
    for (const auto& [key, attempt] : core_.state().attempts) {
      EXPECT_TRUE(core_.state().jobs.contains(key.first) ||
                  std::any_of(attempt.parts().begin(), attempt.parts().end(),
                              [](const auto& part) { return !part.ended(); }))
          << "nobody needs attempt " << key.second << " of " << key.first;
      for (const auto& rank : attempt.ranks()) {
        if (!HoldsDevices(attempt, rank.node())) continue;
        EXPECT_TRUE(devices.emplace(rank.node(), rank.device()).second)
            << rank.node() << " " << rank.device() << " is held twice";
      }
      if (IsTerminal(attempt.state())) continue;
      EXPECT_EQ(++live[key.first], 1) << "two live attempts of " << key.first;
    }
    for (const auto& [id, job] : core_.state().jobs) CheckJob(id, job, live);
  }

  void CheckJob(const std::string& id, const Job& job,
                const std::map<std::string, int>& live) {
    const qlora::v1::Job& view = job.job();
    const bool placed = view.state() == qlora::v1::JOB_STATE_STARTING ||
                        view.state() == qlora::v1::JOB_STATE_RUNNING ||
                        view.state() == qlora::v1::JOB_STATE_CANCELLING;
    EXPECT_EQ(live.contains(id), placed)
        << id << " is " << ShortName(view.state());
    EXPECT_GE(view.head_step(), heads_[id]);
    heads_[id] = view.head_step();
    EXPECT_TRUE(view.head_step() == 0 ||
                core_.state().checkpoints.contains({id, view.head_step()}))
        << "the head of " << id << " does not exist";
    EXPECT_EQ(view.state() == qlora::v1::JOB_STATE_SUCCEEDED,
              view.output_size() > 0 && IsTerminal(view.state()) &&
                  view.state() != qlora::v1::JOB_STATE_CANCELLED);
    const bool held = view.state() == qlora::v1::JOB_STATE_HELD;
    const bool unexplained =
        view.state() == qlora::v1::JOB_STATE_FAILED &&
        (view.failure_class() == qlora::v1::FAILURE_CLASS_INFRA ||
         view.failure_class() == qlora::v1::FAILURE_CLASS_INTERNAL);
    EXPECT_EQ(!view.hint().empty(), held || unexplained)
        << id << " hints at " << view.hint();
    if (held) {
      EXPECT_FALSE(view.reason().empty());
      EXPECT_EQ(view.last_failure().attempt(), view.attempt());
    }
    const auto [before, first] = terminal_.try_emplace(id, view.state());
    if (!first && IsTerminal(before->second)) {
      EXPECT_EQ(before->second, view.state()) << id << " left its end";
    }
    before->second = view.state();
  }

  CoreHarness core_;
  std::minstd_rand random_;
  bool calm_ = false;
  int submitted_ = 0;
  int resumed_ = 0;
  int removed_ = 0;
  std::vector<std::string> jobs_;
  std::map<std::string, int> boots_;
  std::map<std::string, int64_t> heads_;
  std::map<std::string, qlora::v1::JobState> terminal_;
};

TEST(Simulation, RandomFaults_KeepTheInvariantsAndEveryJobEnds) {
  int submitted = 0, resumed = 0, removed = 0;
  for (unsigned seed = 1; seed <= 40 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Simulation simulation(seed);
    simulation.Run(300);
    simulation.Settle();
    submitted += simulation.submitted();
    resumed += simulation.resumed();
    removed += simulation.removed();
  }
  EXPECT_GT(submitted, 300);
  EXPECT_GT(resumed, 30);
  EXPECT_GT(removed, 10);
}

}  // namespace
}  // namespace qlora::server
