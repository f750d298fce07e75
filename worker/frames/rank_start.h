// What whoever starts a rank gives it.
#pragma once

namespace qlora {

// The socket for frames.
inline constexpr int kRankFramesFd = 3;
// Of rank 0 of several: the listening socket of their rendezvous.
inline constexpr int kRankListenFd = 4;

// Of its environment. A compute thread spins for some 10 us where it waits for
// another, then sleeps: by OpenMP's own count it would spin for milliseconds,
// and where others use the cores too, use up its share of them with that (a
// small model's steps then took 7 times as long and more).
inline constexpr char kRankSpin[] = "GOMP_SPINCOUNT=1000";

}  // namespace qlora
