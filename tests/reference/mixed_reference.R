# Writes mixed_reference.json: data and fits of lme4 and lmerTest.
# Rscript mixed_reference.R   (in this directory; R 4.2.2, lme4 1.1-31, lmerTest 3.1-3)
suppressMessages({library(lme4); library(lmerTest); library(jsonlite)})

simulate <- function(sizes, between, seed) {
  set.seed(seed)
  cohort <- rep(sprintf("c%02d", seq_along(sizes)), sizes)
  n <- length(cohort)
  age <- runif(n, 40, 85)
  sex <- sample(c("F", "M"), n, TRUE)
  volume <- exp(rnorm(n, 2, 1.2))
  u <- rnorm(length(sizes), 0, between)[rep(seq_along(sizes), sizes)]
  pad <- 1.5 + 0.7 * as.numeric(scale(log10(volume))) - 0.05 * age + 0.4 * (sex == "M") + u + rnorm(n, 0, 4)
  data.frame(cohort, age, sex, volume, pad)
}
set.seed(1)
cases <- list(
  balanced = simulate(rep(20, 6), 2, 11),
  unequal = simulate(c(1, 1, 1, 2, 2, 3, sample(2:40, 28, TRUE)), 1.5, 12),
  boundary = simulate(rep(15, 8), 0, 18),
  small_variance = simulate(rep(c(5, 30), 10), 0.9, 15)
)
fit <- function(d) {
  control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-12, maxfun = 1e5))
  m <- suppressMessages(lmer(pad ~ scale(log10(volume)) + age + sex + (1 | cohort), d, REML = TRUE, control = control))
  s <- summary(m)$coefficients
  v <- as.data.frame(VarCorr(m))
  list(data = as.list(d), term = rownames(s), estimate = s[, "Estimate"], se = s[, "Std. Error"],
       df = s[, "df"], p = s[, "Pr(>|t|)"], group_variance = v$vcov[1], residual_variance = v$vcov[2])
}
out <- lapply(cases, fit)
out$versions <- list(R = R.version.string, lme4 = as.character(packageVersion("lme4")),
                     lmerTest = as.character(packageVersion("lmerTest")))
write(toJSON(out, digits = NA, auto_unbox = TRUE, pretty = FALSE), "mixed_reference.json")
for (name in names(cases)) cat(name, out[[name]]$group_variance, out[[name]]$df, "\n")
