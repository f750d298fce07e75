#include "server/core/membership.h"

#include <algorithm>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/attempt.h"
#include "server/core/job.h"

namespace qlora::server {

using qlora::v1::Decision;
using qlora::v1::NodeState;

namespace {

absl::Status CheckName(const std::string& name) {
  const auto ok = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
  };
  if (name.empty() || name.size() > 63 ||
      !std::all_of(name.begin(), name.end(), ok)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "node name \"", name, "\": use 1 to 63 of letters, digits, - _ ."));
  }
  return absl::OkStatus();
}

// Far above what any cluster reaches. The coordinator goes on from the largest
// numbers that nodes name: those that it has reached itself are taken beyond.
constexpr int64_t kMaxNumber = int64_t{1} << 60;
constexpr int32_t kMaxAttempt = 1 << 30;

int64_t NewestTerm(const qlora::v1::Hello& hello) {
  int64_t term = hello.term();
  for (const auto& item : hello.inventory()) term = std::max(term, item.term());
  return term;
}

absl::Status CheckHello(const State& state, const qlora::v1::Hello& hello) {
  if (absl::Status status = CheckName(hello.node()); !status.ok()) {
    return status;
  }
  if (hello.boot_id().empty()) {
    return absl::InvalidArgumentError("Hello without boot_id");
  }
  std::set<std::string> names;
  for (const auto& device : hello.devices()) {
    if (device.name().empty() || !names.insert(device.name()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("node ", hello.node(), " names device \"", device.name(),
                       "\" twice or not at all"));
    }
  }
  if (!hello.cluster_id().empty() && hello.cluster_id() != state.cluster_id) {
    return absl::FailedPreconditionError(absl::StrCat(
        "node ", hello.node(), " belongs to cluster ", hello.cluster_id(),
        ", this coordinator leads ", state.cluster_id,
        "; start the worker with an empty data directory to move it"));
  }
  for (const auto& item : hello.inventory()) {
    if (item.attempt() < 1 ||
        (item.attempt() > kMaxAttempt &&
         !state.attempts.contains({item.job_id(), item.attempt()}))) {
      return absl::InvalidArgumentError(
          absl::StrCat("node ", hello.node(), " names attempt ", item.attempt(),
                       " of ", item.job_id(),
                       ", which no coordinator can have started; start the "
                       "worker with an empty data directory"));
    }
  }
  const auto known = state.nodes.find(hello.node());
  const uint64_t sent =
      known == state.nodes.end() ? 0 : known->second.record.last_command();
  if (NewestTerm(hello) > std::max(kMaxNumber, state.term) ||
      hello.last_command_seen() >
          std::max(static_cast<uint64_t>(kMaxNumber), sent)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "node ", hello.node(), " has seen term ", NewestTerm(hello),
        " and command ", hello.last_command_seen(),
        ", which no coordinator can have reached; start the worker with an "
        "empty data directory"));
  }
  return absl::OkStatus();
}

// Attempts with a living part on the node.
std::vector<AttemptKey> AttemptsOn(const Draft& draft,
                                   const std::string& node) {
  std::vector<AttemptKey> keys;
  draft.attempts.ForEach([&](const AttemptKey& key, const AttemptRecord& a) {
    if (IsTerminal(a.state())) return;
    const AttemptPart* part = FindPart(a, node);
    if (part != nullptr && !PartIsOver(*part)) keys.push_back(key);
  });
  return keys;
}

bool InInventory(const qlora::v1::Hello& hello, const AttemptRecord& attempt) {
  return std::any_of(hello.inventory().begin(), hello.inventory().end(),
                     [&](const auto& item) {
                       return item.job_id() == attempt.job_id() &&
                              item.attempt() == attempt.attempt() &&
                              item.term() == attempt.term();
                     });
}

// Attempts that do without the node, of which it may still have ranks.
std::vector<AttemptKey> GivenUpOn(const Draft& draft, const std::string& node) {
  std::vector<AttemptKey> keys;
  draft.attempts.ForEach([&](const AttemptKey& key, const AttemptRecord& a) {
    const AttemptPart* part = FindPart(a, node);
    if (part != nullptr && part->lost() && !part->ended()) keys.push_back(key);
  });
  return keys;
}

// Gives up what the agent does not have any more. One that was started anew has
// no ranks, but reports the end of what it still names.
void LoseMissing(Draft& draft, const qlora::v1::Hello& hello) {
  for (const AttemptKey& key : AttemptsOn(draft, hello.node())) {
    AttemptRecord attempt = *draft.attempts.Find(key);
    AttemptPart& part = *FindPart(attempt, hello.node());
    if (InInventory(hello, attempt)) {
      if (part.boot_id() != hello.boot_id()) part.set_departed(true);
      part.set_boot_id(hello.boot_id());
      draft.attempts.Put(key, std::move(attempt));
    } else if (part.boot_id() != hello.boot_id()) {
      LosePart(draft, key, hello.node(),
               absl::StrCat("the agent of ", hello.node(),
                            " was restarted: its ranks are gone"));
    } else if (part.prepare_command() <= hello.last_command_seen()) {
      LosePart(draft, key, hello.node(),
               absl::StrCat("the agent of ", hello.node(),
                            " does not know its ranks"));
    }
  }
}

// Notes that ranks which were given up are gone: the agent does not have them,
// nor a command on its way that would make them. The others are told to end.
void NoteGone(Draft& draft, const qlora::v1::Hello& hello) {
  // Of a node that was removed the numbers began anew.
  const uint64_t newest = draft.nodes.Find(hello.node())->record.last_command();
  for (const AttemptKey& key : GivenUpOn(draft, hello.node())) {
    AttemptRecord& attempt = *draft.attempts.Mutable(key);
    const uint64_t prepare = FindPart(attempt, hello.node())->prepare_command();
    const bool on_its_way = !hello.cluster_id().empty() &&
                            prepare > hello.last_command_seen() &&
                            prepare <= newest;
    if (on_its_way || InInventory(hello, attempt)) {
      AwaitEnd(draft, attempt);
    } else {
      OnRanksGone(draft, key, hello.node());
    }
  }
}

Decision::Action Decide(const Draft& draft, const std::string& node,
                        const qlora::v1::AttemptInventory& item) {
  const AttemptRecord* attempt =
      draft.attempts.Find({item.job_id(), item.attempt()});
  // Its record would be there if it had begun in this database: this one began
  // after the copy that was restored.
  if (attempt == nullptr || attempt->term() != item.term()) {
    return Decision::ACTION_HOLD;
  }
  if (IsTerminal(attempt->state())) return Decision::ACTION_KILL;
  const AttemptPart* part = FindPart(*attempt, node);
  return part == nullptr || PartIsOver(*part) ? Decision::ACTION_KILL
                                              : Decision::ACTION_KEEP;
}

// Of another life of this database: says so once, and keeps clear of its
// number.
void NoteUnknown(Draft& draft, const std::string& node,
                 const qlora::v1::AttemptInventory& item) {
  const Job* job = draft.jobs.Find(item.job_id());
  if (job == nullptr || job->record.seen_attempt() >= item.attempt()) return;
  draft.Tell(item.job_id(), "AttemptHeld",
             absl::StrCat(node, " has attempt ", item.attempt(), " of term ",
                          item.term(),
                          ", which the database does not know: it was started "
                          "after the copy that was restored; nothing of it is "
                          "taken, and the node keeps it for a time for a "
                          "database that knows it"),
             item.attempt());
  JobRecord& record = draft.ChangeJob(item.job_id()).record;
  record.set_seen_attempt(item.attempt());
}

// Enters what Hello says into the node's record.
void TakeIn(Draft& draft, const qlora::v1::Hello& hello, uint64_t stream) {
  if (draft.nodes.Find(hello.node()) == nullptr) {
    draft.nodes.Put(hello.node(), Node{});
  }
  Node& node = *draft.nodes.Mutable(hello.node());
  if (node.stream != 0) {
    draft.Emit(CloseStream{
        hello.node(), node.stream,
        absl::AbortedError("a newer stream of this node replaces this one")});
  }
  node.stream = stream;
  node.process = hello.process();
  node.last_heartbeat = draft.now;
  const bool same_boot = node.record.boot_id() == hello.boot_id();
  qlora::v1::Node& view = *node.record.mutable_node();
  view.set_name(hello.node());
  *view.mutable_devices() = hello.devices();
  view.set_version(hello.version());
  view.set_memory_bytes(hello.memory_bytes());
  *view.mutable_model_roots() = hello.model_roots();
  if (!same_boot || view.state() != NodeState::NODE_STATE_QUARANTINED) {
    view.set_state(NodeState::NODE_STATE_READY);
  }
  node.record.set_boot_id(hello.boot_id());
  if (hello.cluster_id().empty()) {
    node.record.set_last_event(0);
  } else {
    // A restored database may be behind: the node drops numbers it has had.
    node.record.set_last_command(
        std::max(node.record.last_command(), hello.last_command_seen()));
  }
}

// When a silent node's ranks are given up.
absl::Time GiveUpTime(const State& state, const Node& node) {
  return std::max(node.last_heartbeat + state.timings.reschedule_after,
                  state.start_time + state.timings.startup_reschedule_after);
}

bool IsSilent(const Draft& draft, const Node& node) {
  return node.state() == NodeState::NODE_STATE_UNREACHABLE &&
         draft.now - node.last_heartbeat >= draft.state.timings.lease;
}

// Which silent nodes the attempt waits for, since when and until when; empty if
// none.
std::string SilentNodes(const Draft& draft, const AttemptRecord& attempt) {
  std::vector<std::string> silent;
  for (const AttemptPart& part : attempt.parts()) {
    if (PartIsOver(part)) continue;
    const Node* node = draft.nodes.Find(part.node());
    if (node == nullptr || !IsSilent(draft, *node)) continue;
    absl::Time until = GiveUpTime(draft.state, *node);
    if (attempt.state() == ATTEMPT_STATE_DRAINING) {
      until = std::min(until, FromProto(attempt.deadline()));
    }
    silent.push_back(absl::StrCat("node ", part.node(),
                                  " is unreachable since ",
                                  ClockTime(node->last_heartbeat),
                                  " and waited for until ", ClockTime(until)));
  }
  if (silent.empty()) return "";
  const int64_t step = ResumeStep(draft, attempt.job_id());
  return absl::StrCat(absl::StrJoin(silent, ", "),
                      "; without it the job starts again from ",
                      step > 0 ? absl::StrCat("step ", step) : "the beginning");
}

// Keeps what the job says of silent nodes up to date while it is under way.
void ExplainSilence(Draft& draft, const AttemptKey& key) {
  const Job* job = draft.jobs.Find(key.first);
  const AttemptRecord* attempt = draft.attempts.Find(key);
  if (job == nullptr || attempt == nullptr || IsTerminal(attempt->state())) {
    return;
  }
  const auto state = job->job().state();
  const bool starting = state == qlora::v1::JOB_STATE_STARTING;
  if (!starting && state != qlora::v1::JOB_STATE_RUNNING) return;
  const std::string well = starting ? kBeingPrepared : "";
  const std::string silence = SilentNodes(draft, *attempt);
  const std::string before = job->job().reason();
  const std::string& after = silence.empty() ? well : silence;
  if (before == after) return;
  draft.ChangeJob(key.first).mutable_job().set_reason(after);
  if (silence.empty()) {
    if (std::any_of(attempt->parts().begin(), attempt->parts().end(),
                    [](const AttemptPart& part) { return part.lost(); })) {
      return;
    }
    draft.Tell(key.first, "NodeReturned", "every node of it is there again",
               key.second);
  } else if (before == well) {
    draft.Tell(key.first, "NodeUnreachable", silence, key.second);
  }
}

// What waits for silent nodes.
void TendSilence(Draft& draft) {
  std::set<AttemptKey> keys;
  draft.nodes.ForEach([&](const std::string& name, const Node& node) {
    if (!IsSilent(draft, node)) return;
    for (AttemptKey& key : AttemptsOn(draft, name)) keys.insert(std::move(key));
  });
  for (const AttemptKey& key : keys) {
    FinishIfOver(draft, key);
    ExplainSilence(draft, key);
  }
}

}  // namespace

absl::StatusOr<int64_t> TermSeen(const State& state,
                                 const qlora::v1::Hello& hello) {
  if (absl::Status status = CheckHello(state, hello); !status.ok()) {
    return status;
  }
  return hello.cluster_id().empty() ? 0 : NewestTerm(hello);
}

absl::StatusOr<qlora::v1::Welcome> OnHello(Draft& draft,
                                           const qlora::v1::Hello& hello,
                                           uint64_t stream) {
  if (absl::Status status = CheckHello(draft.state, hello); !status.ok()) {
    return status;
  }
  const Node* known = draft.nodes.Find(hello.node());
  if (known != nullptr && known->stream != 0 &&
      known->record.boot_id() != hello.boot_id()) {
    return absl::AlreadyExistsError(absl::StrCat(
        "the node name \"", hello.node(), "\" is taken: another worker (",
        known->process.empty() ? "of an older version" : known->process,
        ") is connected with it; start this one with another --node-name, or "
        "stop that one first"));
  }
  TakeIn(draft, hello, stream);
  LoseMissing(draft, hello);
  NoteGone(draft, hello);
  qlora::v1::Welcome welcome;
  welcome.set_cluster_id(draft.state.cluster_id);
  welcome.set_term(draft.state.term);
  for (const auto& item : hello.inventory()) {
    auto& decision = *welcome.add_decisions();
    decision.set_job_id(item.job_id());
    decision.set_attempt(item.attempt());
    decision.set_action(Decide(draft, hello.node(), item));
    if (decision.action() == Decision::ACTION_HOLD) {
      NoteUnknown(draft, hello.node(), item);
    }
  }
  for (const AttemptKey& key : AttemptsOn(draft, hello.node())) {
    ExplainSilence(draft, key);
  }
  const Node& node = *draft.nodes.Find(hello.node());
  welcome.set_resend_from(node.record.last_event() + 1);
  return welcome;
}

void OnHeartbeat(Draft& draft, const std::string& name,
                 const qlora::v1::Heartbeat& heartbeat) {
  Node& node = *draft.nodes.Mutable(name);
  node.last_heartbeat = draft.now;
  qlora::v1::Node& view = *node.record.mutable_node();
  if (heartbeat.draining()) {
    view.set_state(NodeState::NODE_STATE_DRAINING);
  } else if (view.state() == NodeState::NODE_STATE_UNREACHABLE ||
             view.state() == NodeState::NODE_STATE_DOWN) {
    view.set_state(NodeState::NODE_STATE_READY);
  }
}

NodeGone ConnectionBroke(const std::string& node) {
  return {node,
          absl::StrCat("the connection to node ", node, " broke; try again")};
}

void OnDisconnect(Draft& draft, const std::string& name, uint64_t stream) {
  const Node* found = draft.nodes.Find(name);
  if (found == nullptr || found->stream != stream) return;
  draft.nodes.Mutable(name)->stream = 0;
  draft.Emit(ConnectionBroke(name));
  for (const AttemptKey& key : AttemptsOn(draft, name)) {
    FinishIfOver(draft, key);
  }
  Node& node = *draft.nodes.Mutable(name);
  if (node.state() == NodeState::NODE_STATE_DRAINING &&
      AttemptsOn(draft, name).empty()) {
    node.record.mutable_node()->set_state(NodeState::NODE_STATE_DRAINED);
  }
}

absl::Status RemoveNode(Draft& draft, const std::string& name) {
  const Node* node = draft.nodes.Find(name);
  if (node == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("no node \"", name, "\"; see `qloractl node list`"));
  }
  if (node->stream != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "node ", name,
        " is connected: stop its worker first, or it would register again"));
  }
  std::string user;
  draft.attempts.ForEach([&](const AttemptKey& key, const AttemptRecord& a) {
    if (!IsTerminal(a.state()) && FindPart(a, name) != nullptr) {
      user = key.first;
    }
  });
  if (!user.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", user, " has ranks on ", name,
                     ": wait until the node is DOWN, or cancel the job"));
  }
  draft.nodes.Erase(name);
  return absl::OkStatus();
}

void CheckLeases(Draft& draft) {
  const Timings& timings = draft.state.timings;
  const bool young =
      draft.now - draft.state.start_time < timings.startup_reschedule_after;
  const absl::Duration patience =
      young
          ? std::max(timings.reschedule_after, timings.startup_reschedule_after)
          : timings.reschedule_after;
  std::vector<std::pair<std::string, NodeState>> changes;
  draft.nodes.ForEach([&](const std::string& name, const Node& node) {
    const absl::Duration silent = draft.now - node.last_heartbeat;
    const NodeState state = node.state();
    if (state == NodeState::NODE_STATE_QUARANTINED) {
      // It stays so; what else ran there must not wait for it.
      if ((silent >= timings.lease && node.stream != 0) ||
          (silent >= patience && !AttemptsOn(draft, name).empty())) {
        changes.emplace_back(name, state);
      }
    } else if (silent >= patience &&
               state == NodeState::NODE_STATE_UNREACHABLE) {
      changes.emplace_back(name, NodeState::NODE_STATE_DOWN);
    } else if (silent >= timings.lease &&
               (state == NodeState::NODE_STATE_READY ||
                state == NodeState::NODE_STATE_DRAINING)) {
      changes.emplace_back(name, NodeState::NODE_STATE_UNREACHABLE);
    }
  });
  for (const auto& [name, state] : changes) {
    Node& node = *draft.nodes.Mutable(name);
    node.record.mutable_node()->set_state(state);
    if (node.stream != 0) {
      draft.Emit(CloseStream{
          name, node.stream,
          absl::DeadlineExceededError("no heartbeat within the lease")});
      node.stream = 0;
      draft.Emit(NodeGone{name, absl::StrCat("node ", name, " is silent")});
    }
    // TendSilence looks at its attempts.
    if (state == NodeState::NODE_STATE_UNREACHABLE) continue;
    const bool waits = draft.now - node.last_heartbeat < patience;
    for (const AttemptKey& key : AttemptsOn(draft, name)) {
      if (waits) {
        FinishIfOver(draft, key);
      } else {
        LosePart(draft, key, name,
                 absl::StrCat("node ", name, " has been silent for ",
                              absl::FormatDuration(patience)));
        ExplainSilence(draft, key);
      }
    }
  }
  TendSilence(draft);
}

void ForgetConnections(Draft& draft) {
  std::vector<std::string> names;
  draft.nodes.ForEach(
      [&](const std::string& name, const Node&) { names.push_back(name); });
  for (const std::string& name : names) {
    Node& node = *draft.nodes.Mutable(name);
    node.stream = 0;
    const NodeState state = node.state();
    // Nobody waits for these, and when they were heard is not stored.
    if (state == NodeState::NODE_STATE_DOWN ||
        state == NodeState::NODE_STATE_DRAINED) {
      continue;
    }
    node.last_heartbeat = draft.now;
    if (state == NodeState::NODE_STATE_READY ||
        state == NodeState::NODE_STATE_DRAINING) {
      node.record.mutable_node()->set_state(NodeState::NODE_STATE_UNREACHABLE);
    }
  }
}

qlora::v1::Node NodeView(const State& state, const Node& node) {
  qlora::v1::Node view = node.record.node();
  if (node.last_heartbeat != absl::InfinitePast()) {
    *view.mutable_last_heartbeat() = ToProto(node.last_heartbeat);
  }
  for (const auto& [key, attempt] : state.attempts) {
    if (!HoldsDevices(attempt, node.name())) continue;
    for (const auto& rank : attempt.ranks()) {
      if (rank.node() != node.name()) continue;
      for (auto& device : *view.mutable_devices()) {
        if (device.name() == rank.device()) device.set_job_id(key.first);
      }
    }
  }
  return view;
}

}  // namespace qlora::server
