// Which artifacts are in use. Pure.
#pragma once

#include <set>
#include <string>

#include "server/core/state.h"

namespace qlora::server {

// SHA-256 of every artifact that a job, checkpoint, model or dataset names.
std::set<std::string> ReferencedArtifacts(const State& state);

}  // namespace qlora::server
