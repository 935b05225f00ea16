#include "worker/train/routes.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

TEST(WorkerRoutesTest, ReadinessFollowsTheSessionAndHealthDoesNot) {
  bool ready = false;
  const HttpRoutes routes =
      WorkerRoutes([] { return std::string("some_metric 1\n"); }, [&ready] { return ready; });
  EXPECT_EQ(routes.at("/healthz")().code, 200);
  EXPECT_EQ(routes.at("/readyz")().code, 503);
  ready = true;
  EXPECT_EQ(routes.at("/readyz")().code, 200);
  const HttpResponse metrics = routes.at("/metrics")();
  EXPECT_EQ(metrics.code, 200);
  EXPECT_EQ(metrics.content_type, kPrometheusContentType);
  EXPECT_EQ(metrics.body, "some_metric 1\n");
}

}  // namespace
}  // namespace signvote
