// Which backends the property tests compare with the reference: a test program
// is linked with one of the sources that say so.
#pragma once

#include <span>

#include "kernels/backend.h"

namespace qlora::kernels {

std::span<const Backend* const> TestedBackends();

// They sum squares in an order of their own.
bool AreDevices();

// Of so many cases, how many are run.
int CaseCount(int cases);

}  // namespace qlora::kernels
