// The launcher's side (launcher.h).
#pragma once

namespace qlora::agent {

// Serves requests on `socket` until its other end closes, then kills every
// child and exits. Never returns.
[[noreturn]] void RunLauncherProcess(int socket);

}  // namespace qlora::agent
