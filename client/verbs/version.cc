#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/verbs.h"

namespace qlora::client {

// Succeeds without a coordinator too: who asks for a version often does so
// because something does not work.
absl::Status Version(Session& session) {
  Connection& connection = session.connection();
  const absl::StatusOr<v1::GetVersionResponse> server =
      connection.Call(connection.server(), &v1::ServerService::Stub::GetVersion,
                      v1::GetVersionRequest());
  std::ostream& out = *session.output.out;
  if (session.output.format == OutputFormat::kTable ||
      session.output.format == OutputFormat::kWide) {
    out << "client       " << QLORA_VERSION << "\ncoordinator  "
        << (server.ok() ? server->version()
                        : absl::StrCat("unknown: ", server.status().message()))
        << " (" << connection.endpoint() << ")\n";
    return absl::OkStatus();
  }
  nlohmann::ordered_json versions = {{"client", QLORA_VERSION},
                                     {"endpoint", connection.endpoint()}};
  if (server.ok()) versions["coordinator"] = server->version();
  return PrintJson(session.output, versions.dump());
}

}  // namespace qlora::client
