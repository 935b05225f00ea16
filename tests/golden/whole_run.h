#pragma once
// Whole runs on functions that can be written down: a function as the product's Model, trained through
// Run, Voter, packing, tally, stepsize rule and apply, in one process (lab/local). Every worker sees the
// function itself: there is no noise.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace signvote {

// f: R^d → R, in double.
class Function {
 public:
  virtual ~Function() = default;
  virtual std::string name() const = 0;
  virtual std::vector<double> Start() const = 0;
  // f(x); its gradient into *g.
  virtual double Value(const std::vector<double>& x, std::vector<double>* g) const = 0;
};

// ½ Σ h_i (x_i − t_i)², h from 1 to 100, d = 24.
std::unique_ptr<Function> MakeSeparableQuadratic();
// The mean over 60 rows of ½ (⟨a, x⟩ − y)², d = 20; no x fits all rows.
std::unique_ptr<Function> MakeLeastSquares();
// The mean over 200 rows of log(1 + exp(−y⟨a, x⟩)), and a little of ‖x‖₂², d = 40.
std::unique_ptr<Function> MakeLogisticLoss();
// All of them: convex, with gradients that are Lipschitz.
std::vector<std::unique_ptr<Function>> ConvexFunctions();

struct WholeRun {
  std::vector<float> gammas;           // γ_t of the commit of round t, T of them
  std::vector<std::vector<double>> x;  // x_0 … x_T as the replica has them: fp32 numbers
};

// A run of `workers` workers; `flags` are signvote-server's. Expects that it comes to its end.
WholeRun RunWhole(const Function& f, uint32_t workers, std::vector<std::string> flags);

}  // namespace signvote
