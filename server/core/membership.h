// Nodes: registration, leases, and what becomes of the ranks of those that
// fall silent. Pure: see state.h.
//
//   Hello --> READY <--> UNREACHABLE (lease missed) --> DOWN (rescheduled)
//               |  draining heartbeat
//               v
//            DRAINING --> DRAINED (stream closed, nothing runs)
//   QUARANTINED: did not end its ranks; a Hello with a new boot id ends it. Its
//   lease counts as others' do.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "qlora/v1/worker.pb.h"
#include "server/core/state.h"

namespace qlora::server {

// The newest term of this cluster that the node has seen; 0 if it has seen
// none. One newer than the state's tells that the state comes from an older
// copy of the database. Errors as OnHello's for a malformed or a stranger's
// Hello.
absl::StatusOr<int64_t> TermSeen(const State& state,
                                 const qlora::v1::Hello& hello);

// Takes a node in, which has seen no term newer than the state's. A new boot id
// loses what ran under the old one, unless the inventory says that its end is
// still to be reported; a replaced stream is closed. InvalidArgument:
// malformed. FailedPrecondition: belongs to another cluster. AlreadyExists: the
// name's stream is open under another boot id.
absl::StatusOr<qlora::v1::Welcome> OnHello(Draft& draft,
                                           const qlora::v1::Hello& hello,
                                           uint64_t stream);

// Renews the lease.
void OnHeartbeat(Draft& draft, const std::string& node,
                 const qlora::v1::Heartbeat& heartbeat);

// What a broken stream means to the node's tasks.
NodeGone ConnectionBroke(const std::string& node);

// The stream broke or was closed; the lease runs on.
void OnDisconnect(Draft& draft, const std::string& node, uint64_t stream);

// Forgets the node and the commands for it, but not which attempts it may still
// have ranks of: should it come back, it is told to end them. NotFound;
// FailedPrecondition while it is connected, or an attempt that has not ended
// has ranks on it.
absl::Status RemoveNode(Draft& draft, const std::string& node);

// Acts on leases that have run out.
void CheckLeases(Draft& draft);

// Nodes as a coordinator that has just started knows them: none is connected,
// and each that was not given up gets the time to return.
void ForgetConnections(Draft& draft);

// The node with what its devices do, for users.
qlora::v1::Node NodeView(const State& state, const Node& node);

}  // namespace qlora::server
