#pragma once
// A stepsize to begin with when nothing is known: small, and yet large enough that a step is not
// absorbed in fp32.

namespace signvote {

// 1e-5·max(1, max|x_0|), rounded to fp32; 1e-5 where max|x_0| is not finite.
float FirstStepsize(double x0_max_abs);

// A positive fp32 number.
bool IsStepsize(double gamma);

}  // namespace signvote
