#include "server/core/references.h"

namespace qlora::server {

std::set<std::string> ReferencedArtifacts(const State& state) {
  std::set<std::string> used;
  const auto add = [&](const auto& files) {
    for (const auto& file : files) used.insert(file.sha256());
  };
  for (const auto& [id, job] : state.jobs) {
    for (const auto& input : job.record.inputs()) add(input.files());
    add(job.record.model().files());
    add(job.job().output());
  }
  for (const auto& [key, checkpoint] : state.checkpoints) {
    add(checkpoint.files());
  }
  for (const auto& [key, attempt] : state.attempts) {
    for (const auto& rank : attempt.staged()) {
      add(rank.staged().files());
      add(rank.staged().output());
    }
  }
  for (const auto& [name, model] : state.models) add(model.files());
  for (const auto& [name, dataset] : state.datasets) {
    used.insert(dataset.file().sha256());
  }
  return used;
}

}  // namespace qlora::server
