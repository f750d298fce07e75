#include "client/local/data_dir.h"
#include "client/local/instance.h"
#include "client/verbs.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status LocalStop(Session& session, const std::string& data_dir_flag,
                       absl::Duration timeout) {
  ASSIGN_OR_RETURN(const std::string data_dir,
                   LocalDataDir(session, data_dir_flag));
  ASSIGN_OR_RETURN(const std::optional<LocalInstance> instance,
                   LoadInstance(data_dir));
  if (!instance) {
    *session.output.out << "nothing runs in " << data_dir << "\n";
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const bool clean,
                   StopInstance(data_dir, *instance, timeout));
  *session.output.out << (clean ? "stopped\n"
                                : "stopped; something had to be killed\n");
  return ForgetLocal(session, data_dir);
}

}  // namespace qlora::client
