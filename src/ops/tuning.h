// The tuned choices as the dispatcher asks for them.
#pragma once

#include <string_view>

#include "megafold/core/device.h"
#include "ops/problem_class.h"

namespace megafold::ops {

// Whether any choice is set for the device: without, a problem's class need not be named.
bool HasTunedChoices(Device device);

// The implementation that a tuned choice names for the class, or nothing. The text outlives the program.
std::string_view TunedImplementation(Device device, const ProblemClass& problem);

}  // namespace megafold::ops
