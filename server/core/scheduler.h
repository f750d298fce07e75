// Places gangs: whole or not at all, by priority, then age. Pure: see state.h.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/state.h"

namespace qlora::server {

// Starts every QUEUED job that fits now, and says in the others' `reason` for
// what they wait. A job that only waits for devices in use keeps younger and
// lesser jobs off the nodes that it waits for. A job in BACKOFF keeps them off
// the devices that it could be placed on now.
void Schedule(Draft& draft);

// OK if the registered nodes could hold the job when nothing else ran, or if
// there are none. InvalidArgument says what is missing where, and what there
// is.
absl::Status CheckCanEverFit(const State& state, const Job& job);

// Names of nodes whose devices have room for a rank of that many bytes of that
// kind, as many as a job's devices_per_node asks for.
std::vector<std::string> NodesThatHold(const State& state, const JobSpec& spec,
                                       int64_t bytes_per_rank);

// A READY node for a task with that model; Unavailable if there is none.
absl::StatusOr<std::string> NodeForTask(const State& state,
                                        const qlora::v1::ModelSource& model);

// True if the directory lies, by its name, below one of the node's roots.
bool NodeSeesDirectory(const qlora::v1::Node& node,
                       const std::string& directory);

}  // namespace qlora::server
