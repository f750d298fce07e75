#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "worker/frames/rank_start.h"
#include "worker/trainer/tasks.h"

namespace qlora::trainer {

absl::StatusOr<std::unique_ptr<Communicator>> JoinGang(
    const v1::TrainerTask& task, AgentLink& link) {
  if (task.world_size() <= 1) return MakeSingleCommunicator();
  ASSIGN_OR_RETURN(const v1::TrainerStart start, link.WaitForStart());
  GlooOptions options;
  options.rank = task.rank();
  options.world_size = task.world_size();
  options.rendezvous_address = start.rendezvous_address();
  options.listen_fd = task.rank() == 0 ? kRankListenFd : -1;
  if (!task.data_plane_host().empty()) {
    options.data_plane_host = task.data_plane_host();
  }
  options.prefix = absl::StrCat(task.job_id(), "/", task.attempt());
  return MakeGlooCommunicator(options);
}

}  // namespace qlora::trainer
