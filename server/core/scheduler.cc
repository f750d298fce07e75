#include "server/core/scheduler.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/base/format.h"
#include "common/base/plural.h"
#include "common/spec/memory_plan.h"
#include "server/core/attempt.h"
#include "server/core/job.h"

namespace qlora::server {

using qlora::v1::Device;
using qlora::v1::JobState;
using qlora::v1::RankAssignment;

namespace {

// Best first, for `device: any`.
constexpr const char* kKinds[] = {"cuda", "mps", "cpu"};

std::vector<std::string> KindsFor(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::kCpu:
      return {"cpu"};
    case DeviceKind::kCuda:
      return {"cuda"};
    case DeviceKind::kMps:
      return {"mps"};
    case DeviceKind::kAny:
      break;
  }
  return {std::begin(kKinds), std::end(kKinds)};
}

// OK if a rank of the job has room on the device.
absl::Status CheckMemory(const Job& job, const Device& device) {
  const JobSpec& spec = job.plan->spec;
  if (device.memory_bytes() == 0) return absl::OkStatus();
  if (spec.resources.min_device_memory > device.memory_bytes()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("resources.min_device_memory is ",
                     FormatBytes(spec.resources.min_device_memory),
                     ", the device has ", FormatBytes(device.memory_bytes())));
  }
  if (!job.plan->model) return absl::OkStatus();
  const int threads = std::max(1, device.cores_size());
  const auto [it, added] = job.plan->fits.try_emplace(
      {device.memory_bytes(), device.fast_bfloat16(), threads});
  if (added) {
    it->second = PlanMemory({.model = &*job.plan->model,
                             .spec = &spec,
                             .world_size = spec.world_size(),
                             .budget = device.memory_bytes(),
                             .fast_bfloat16 = device.fast_bfloat16(),
                             .threads = threads})
                     .status();
  }
  return it->second;
}

// Devices that are taken, by node: "in use" by ranks or by some that may still
// be there, or for whom they are kept.
using Busy = std::map<std::string, std::map<std::string, std::string>>;

constexpr char kInUse[] = "in use";

void Take(Busy& busy, const std::vector<RankAssignment>& ranks,
          const std::string& why) {
  for (const RankAssignment& rank : ranks) {
    busy[rank.node()][rank.device()] = why;
  }
}

template <typename Attempts>
Busy BusyDevices(const Attempts& attempts) {
  Busy busy;
  attempts([&](const AttemptRecord& attempt) {
    for (const RankAssignment& rank : attempt.ranks()) {
      if (!HoldsDevices(attempt, rank.node())) continue;
      busy[rank.node()][rank.device()] = kInUse;
    }
  });
  return busy;
}

struct Candidate {
  const Node* node;
  std::vector<std::string> devices;
};

struct Search {
  std::vector<RankAssignment> ranks;
  // Why not, when there are none.
  std::string missing;
};

// What a search over nodes considers.
struct SearchScope {
  std::vector<const Node*> nodes;
  // Devices that are taken; null: as if nothing ran.
  const Busy* busy;
};

// "2 in use".
void CountOfWhy(std::string* text, const std::pair<std::string, int>& taken) {
  absl::StrAppend(text, taken.second, " ", taken.first);
}

// Devices of the kind on the node that can take a rank of the job.
std::vector<std::string> UsableDevices(const Job& job, const Node& node,
                                       const std::string& kind,
                                       const Busy* busy,
                                       std::vector<std::string>& why) {
  std::vector<std::string> usable;
  int small = 0, of_kind = 0;
  std::map<std::string, int> taken;
  std::string memory_reason;
  const std::map<std::string, std::string>* held = nullptr;
  if (busy != nullptr) {
    const auto it = busy->find(node.name());
    if (it != busy->end()) held = &it->second;
  }
  for (const Device& device : node.record.node().devices()) {
    if (device.kind() != kind) continue;
    ++of_kind;
    if (absl::Status memory = CheckMemory(job, device); !memory.ok()) {
      ++small;
      memory_reason = std::string(memory.message());
      continue;
    }
    if (held != nullptr) {
      const auto it = held->find(device.name());
      if (it != held->end()) {
        ++taken[it->second];
        continue;
      }
    }
    usable.push_back(device.name());
  }
  const int needed = job.plan->spec.resources.devices_per_node;
  if (static_cast<int>(usable.size()) < needed && of_kind > 0) {
    std::string text =
        absl::StrCat(node.name(), " has ", usable.size(), " of ", of_kind, " ",
                     kind, " devices ", busy != nullptr ? "free" : "for it");
    if (!taken.empty()) {
      absl::StrAppend(&text, " (", absl::StrJoin(taken, ", ", CountOfWhy), ")");
    }
    if (small > 0) absl::StrAppend(&text, "; too small: ", memory_reason);
    why.push_back(std::move(text));
  }
  return usable;
}

// Nodes of last failure last, then those that the job fills best.
void SortByFit(const Job& job, std::vector<Candidate>& candidates) {
  const auto& avoid = job.record.avoid_nodes();
  const auto rank = [&](const Candidate& c) {
    const bool avoided =
        std::find(avoid.begin(), avoid.end(), c.node->name()) != avoid.end();
    return std::make_tuple(avoided, c.devices.size(), c.node->name());
  };
  std::sort(candidates.begin(), candidates.end(),
            [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
}

std::vector<RankAssignment> Assign(const JobSpec& spec,
                                   const std::vector<Candidate>& candidates) {
  std::vector<RankAssignment> ranks;
  for (int n = 0; n < spec.resources.nodes; ++n) {
    for (int d = 0; d < spec.resources.devices_per_node; ++d) {
      RankAssignment rank;
      rank.set_rank(static_cast<int32_t>(ranks.size()));
      rank.set_node(candidates[n].node->name());
      rank.set_device(candidates[n].devices[d]);
      ranks.push_back(std::move(rank));
    }
  }
  return ranks;
}

bool SeesModel(const Node& node, const Job& job) {
  const std::string& directory = job.record.model().directory();
  return directory.empty() || NodeSeesDirectory(node.record.node(), directory);
}

// "1 node with 2 free cpu devices".
std::string Wanted(const JobSpec& spec, bool free) {
  const auto& wanted = spec.resources;
  const bool any = wanted.device == DeviceKind::kAny;
  return absl::StrCat(Plural(wanted.nodes, "node"), " with ",
                      wanted.devices_per_node, free ? " free " : " ",
                      any ? "" : absl::StrCat(KindsFor(wanted.device)[0], " "),
                      wanted.devices_per_node == 1 ? "device" : "devices",
                      any ? " of any kind" : "");
}

Search FindPlace(const Job& job, const SearchScope& scope) {
  const JobSpec& spec = job.plan->spec;
  std::vector<std::string> why, enough;
  for (const Node* node : scope.nodes) {
    if (!SeesModel(*node, job)) {
      why.push_back(absl::StrCat(node->name(), " has ",
                                 job.record.model().directory(),
                                 " under none of its model roots"));
    }
  }
  for (const std::string& kind : KindsFor(spec.resources.device)) {
    std::vector<Candidate> candidates;
    for (const Node* node : scope.nodes) {
      if (!SeesModel(*node, job)) continue;
      auto devices = UsableDevices(job, *node, kind, scope.busy, why);
      if (static_cast<int>(devices.size()) >= spec.resources.devices_per_node) {
        candidates.push_back({node, std::move(devices)});
      }
    }
    if (static_cast<int>(candidates.size()) < spec.resources.nodes) {
      for (const Candidate& c : candidates) enough.push_back(c.node->name());
      continue;
    }
    SortByFit(job, candidates);
    return {Assign(spec, candidates), ""};
  }
  if (!enough.empty()) {
    why.insert(why.begin(),
               absl::StrCat("only ", absl::StrJoin(enough, ", "),
                            enough.size() == 1 ? " has" : " have", " that"));
  }
  return {{},
          absl::StrCat("needs ", Wanted(spec, scope.busy != nullptr),
                       why.empty() ? "" : ": ", absl::StrJoin(why, "; "))};
}

// "n1 has 2 cpu devices of 4.0 GiB, n2 has none", cut short.
std::string Offers(const std::vector<const Node*>& nodes) {
  constexpr size_t kMaxShown = 8;
  std::vector<std::string> all;
  for (size_t i = 0; i < nodes.size() && i < kMaxShown; ++i) {
    std::map<std::pair<std::string, int64_t>, int> kinds;
    for (const Device& device : nodes[i]->record.node().devices()) {
      ++kinds[{device.kind(), device.memory_bytes()}];
    }
    std::vector<std::string> counts;
    for (const auto& [kind, count] : kinds) {
      counts.push_back(absl::StrCat(
          Plural(count, absl::StrCat(kind.first, " device")),
          kind.second > 0 ? absl::StrCat(" of ", FormatBytes(kind.second))
                          : ""));
    }
    all.push_back(
        absl::StrCat(nodes[i]->name(), " has ",
                     counts.empty() ? "none" : absl::StrJoin(counts, " and ")));
  }
  if (nodes.size() > kMaxShown) {
    all.push_back(absl::StrCat("and ", nodes.size() - kMaxShown, " more"));
  }
  return absl::StrJoin(all, ", ");
}

// Those that could start now, or soon: a job keeps its place in a pause.
std::vector<std::string> Queue(const Draft& draft) {
  std::vector<std::tuple<int, int64_t, std::string>> order;
  draft.jobs.ForEach([&](const std::string& id, const Job& job) {
    if (job.job().state() != JobState::JOB_STATE_QUEUED &&
        job.job().state() != JobState::JOB_STATE_BACKOFF) {
      return;
    }
    order.emplace_back(-job.job().priority(),
                       absl::ToUnixNanos(FromProto(job.job().create_time())),
                       id);
  });
  std::sort(order.begin(), order.end());
  std::vector<std::string> ids;
  for (auto& entry : order) ids.push_back(std::move(std::get<2>(entry)));
  return ids;
}

void Explain(Draft& draft, const std::string& id, const std::string& reason) {
  if (draft.jobs.Find(id)->job().reason() == reason) return;
  draft.ChangeJob(id).mutable_job().set_reason(reason);
}

std::string KeptFor(const Job& job) {
  return absl::StrCat("kept for ", job.job().job_id(),
                      ", which starts again at ",
                      ClockTime(FromProto(job.job().backoff_until())));
}

// A job file that an older version took, and this one does not understand.
void HoldUnreadable(Draft& draft, const std::string& id) {
  Job& job = draft.ChangeJob(id);
  job.mutable_job().set_state(JobState::JOB_STATE_HELD);
  job.mutable_job().set_failure_class(qlora::v1::FAILURE_CLASS_USER);
  job.mutable_job().set_reason(
      absl::StrCat("this version of the coordinator cannot read the job: ",
                   job.plan->error.message()));
  job.mutable_job().set_hint(
      absl::StrCat("qloractl resume ", id,
                   "  # after going back to the version that wrote it"));
  draft.Tell(id, "Held", job.job().reason());
}

// Nodes that are registered and not gone for good.
template <typename ForEachNode>
std::vector<const Node*> NodesWhere(ForEachNode for_each,
                                    bool (*wanted)(const Node&)) {
  std::vector<const Node*> nodes;
  for_each([&](const Node& node) {
    if (wanted(node)) nodes.push_back(&node);
  });
  return nodes;
}

std::string AbsentNodes(const std::vector<const Node*>& all) {
  std::vector<std::string> absent;
  for (const Node* node : all) {
    if (!node->schedulable()) {
      absent.push_back(absl::StrCat(node->name(), " is ",
                                    node->state() == qlora::v1::NODE_STATE_READY
                                        ? "disconnected"
                                        : ShortName(node->state())));
    }
  }
  return absent.empty() ? ""
                        : absl::StrCat(" (", absl::StrJoin(absent, ", "), ")");
}

}  // namespace

void Schedule(Draft& draft) {
  const std::vector<std::string> queue = Queue(draft);
  if (queue.empty()) return;
  const auto each_node = [&](auto f) {
    draft.nodes.ForEach([&](const std::string&, const Node& n) { f(n); });
  };
  const auto all = NodesWhere(each_node, [](const Node&) { return true; });
  auto open =
      NodesWhere(each_node, [](const Node& n) { return n.schedulable(); });
  // Copies: placing a job changes the nodes' records.
  std::vector<Node> copies;
  copies.reserve(open.size());
  for (const Node*& node : open) node = &copies.emplace_back(*node);
  const std::string absent = AbsentNodes(all);
  Busy busy = BusyDevices([&](auto f) {
    draft.attempts.ForEach(
        [&](const AttemptKey&, const AttemptRecord& a) { f(a); });
  });
  for (const std::string& id : queue) {
    if (!draft.jobs.Find(id)->plan->error.ok()) {
      HoldUnreadable(draft, id);
      continue;
    }
    const Job& job = *draft.jobs.Find(id);
    const Search found = FindPlace(job, {open, &busy});
    if (job.job().state() == JobState::JOB_STATE_BACKOFF) {
      Take(busy, found.ranks, KeptFor(job));
      continue;
    }
    if (all.empty()) {
      Explain(draft, id, "waits for a worker: none is registered");
      continue;
    }
    if (!found.ranks.empty()) {
      StartAttempt(draft, id, found.ranks);
      Take(busy, found.ranks, kInUse);
      continue;
    }
    Explain(draft, id,
            absl::StrCat("waits for devices: ", found.missing, absent));
    if (open.empty()) continue;
    const Search idle = FindPlace(job, {open, nullptr});
    std::set<std::string> closed;
    for (const auto& rank : idle.ranks) closed.insert(rank.node());
    std::erase_if(
        open, [&](const Node* node) { return closed.contains(node->name()); });
  }
}

absl::Status CheckCanEverFit(const State& state, const Job& job) {
  SearchScope scope{{}, nullptr};
  for (const auto& [name, node] : state.nodes) scope.nodes.push_back(&node);
  if (scope.nodes.empty()) return absl::OkStatus();
  const Search found = FindPlace(job, scope);
  if (!found.ranks.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the registered nodes can never hold this job: it ", found.missing, " (",
      Offers(scope.nodes),
      "); ask for less there, or start the workers that are missing (`qloractl "
      "node list`; on one machine `qloractl local start --cpu-ranks N`)"));
}

std::vector<std::string> NodesThatHold(const State& state, const JobSpec& spec,
                                       int64_t bytes_per_rank) {
  std::vector<std::string> names;
  for (const auto& [name, node] : state.nodes) {
    for (const std::string& kind : KindsFor(spec.resources.device)) {
      int count = 0;
      for (const Device& device : node.record.node().devices()) {
        count +=
            device.kind() == kind && (device.memory_bytes() == 0 ||
                                      device.memory_bytes() >= bytes_per_rank);
      }
      if (count >= spec.resources.devices_per_node) {
        names.push_back(name);
        break;
      }
    }
  }
  return names;
}

absl::StatusOr<std::string> NodeForTask(const State& state,
                                        const qlora::v1::ModelSource& model) {
  const Busy busy = BusyDevices([&](auto f) {
    for (const auto& [key, attempt] : state.attempts) f(attempt);
  });
  std::string best;
  size_t least = 0;
  for (const auto& [name, node] : state.nodes) {
    if (!node.schedulable() ||
        (!model.directory().empty() &&
         !NodeSeesDirectory(node.record.node(), model.directory()))) {
      continue;
    }
    const auto it = busy.find(name);
    const size_t load = it == busy.end() ? 0 : it->second.size();
    if (best.empty() || load < least) {
      best = name;
      least = load;
    }
  }
  if (!best.empty()) return best;
  return absl::UnavailableError(
      model.directory().empty()
          ? "no worker is ready; see `qloractl node list`"
          : absl::StrCat("no ready worker has ", model.directory(),
                         " under a model root; see `qloractl node list`"));
}

bool NodeSeesDirectory(const qlora::v1::Node& node,
                       const std::string& directory) {
  return std::any_of(node.model_roots().begin(), node.model_roots().end(),
                     [&](const std::string& root) {
                       const absl::string_view trimmed =
                           absl::StripSuffix(absl::string_view(root), "/");
                       return absl::StartsWith(directory, trimmed) &&
                              (directory.size() == trimmed.size() ||
                               directory[trimmed.size()] == '/');
                     });
}

}  // namespace qlora::server
