# Writes mixed_reference.json: data and fits of lme4 and lmerTest.
# Rscript mixed_reference.R [FILE]   (R 4.2.2, lme4 1.1-31, lmerTest 3.1-3, numDeriv 2016.8-1.1)
#
# lme4 stops searching where the deviance is flat to its tolerance, up to 1e-4 from the optimum.
# Here its own deviance is searched with bobyqa, then by Newton steps with numerical derivatives,
# which gives the variances to about 1e-8.
suppressMessages({library(lme4); library(lmerTest); library(jsonlite)})
file <- c(commandArgs(TRUE), "mixed_reference.json")[1]

polished <- function(fn, par, lower, upper, control) {
  found <- minqa::bobyqa(par, fn, lower, upper, list(rhobeg = 0.2, rhoend = 1e-9, maxfun = 1e5))
  par <- found$par
  free <- par > lower + 1e-4
  if (!all(free)) {
    at_zero <- par; at_zero[!free] <- lower[!free]
    if (fn(at_zero) <= found$fval + 1e-9) par <- at_zero
  }
  if (any(free)) {
    part <- function(x) { full <- par; full[free] <- x; fn(full) }
    for (k in 1:4) {
      slope <- numDeriv::grad(part, par[free], method.args = list(r = 6))
      curve <- numDeriv::hessian(part, par[free], method.args = list(r = 6))
      par[free] <- par[free] - solve(curve, slope)
    }
  }
  list(par = par, fval = fn(par), conv = 0, feval = found$feval, message = "polished")
}
control <- lmerControl(optimizer = polished, check.conv.grad = "ignore",
                       check.conv.hess = "ignore", check.scaleX = "ignore", calc.derivs = FALSE)

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
many <- c(1, 1, 1, 2, 2, 3, sample(2:40, 28, TRUE))
fewer <- c(1, 1, 1, 2, 2, 3, sample(2:16, 28, TRUE))
cases <- list(
  balanced = simulate(rep(20, 6), 2, 11),
  unequal = simulate(many, 1.5, 12),
  boundary = simulate(rep(15, 8), 0, 18),
  small_variance = simulate(rep(c(5, 30), 10), 0.9, 15)
)
collinear <- simulate(fewer, 1.5, 21)
collinear$volume_mm3 <- 1000 * collinear$volume * exp(rnorm(nrow(collinear), 0, 0.03))
cases$collinear <- collinear
missing <- simulate(rep(c(3, 12, 25), 5), 1.5, 22)
missing$pad[c(2, 30, 31)] <- NA
missing$age[c(5, 30)] <- NA
missing$volume[c(9, 77)] <- NA
missing$sex[40] <- NA
cases$missing <- missing
scales <- simulate(fewer, 1.5, 23)
scales$age <- scales$age * 1e6
scales$volume <- scales$volume * 1e-6
scales$icv <- rnorm(nrow(scales), 1.5e6, 1e5)
cases$scales <- scales
weighted <- simulate(fewer, 1.5, 24)
weighted$weight <- 10^runif(nrow(weighted), -6, 6)
weighted$pad <- weighted$pad + rnorm(nrow(weighted), 0, 1) / sqrt(weighted$weight)
cases$weights <- weighted
slopes <- simulate(rep(c(8, 14, 30), 8), 1.5, 31)
by <- rnorm(24, 0, 0.12)[rep(1:24, rep(c(8, 14, 30), 8))]
slopes$pad <- slopes$pad + by * (slopes$age - 60)
cases$slope <- slopes
cases$slope_singular <- simulate(rep(c(8, 14), 8), 1.5, 32)

usual <- "pad ~ scale(log10(volume)) + age + sex"
formulas <- list(
  collinear = "pad ~ log10(volume) + log10(volume_mm3) + age + sex",
  scales = "pad ~ volume + age + sex + icv",
  weights = "pad ~ age + sex",
  slope = "pad ~ scale(age) + sex",
  slope_singular = "pad ~ scale(age) + sex"
)
random <- list(slope = "(1 + scale(age) | cohort)", slope_singular = "(1 + scale(age) | cohort)")

fit <- function(formula, d, reml) {
  d <- d[complete.cases(d), ]  # scale() as here: over the rows used
  d$w <- if (is.null(d$weight)) rep(1, nrow(d)) else d$weight
  m <- suppressWarnings(suppressMessages(
    lmer(as.formula(formula), d, REML = reml, control = control, weights = w)))
  s <- summary(m)$coefficients
  v <- as.data.frame(VarCorr(m))
  parts <- list(group_variance = v$vcov[1], residual_variance = sigma(m)^2)
  if (nrow(v) == 4) parts <- c(parts, list(slope_variance = v$vcov[2], slope_covariance = v$vcov[3]))
  c(list(term = rownames(s), estimate = s[, "Estimate"], se = s[, "Std. Error"], df = s[, "df"],
         p = s[, "Pr(>|t|)"], log_likelihood = as.numeric(logLik(m)), n = nobs(m)), parts)
}
out <- list()
for (name in names(cases)) {
  right <- if (is.null(formulas[[name]])) usual else formulas[[name]]
  group <- if (is.null(random[[name]])) "(1 | cohort)" else random[[name]]
  formula <- paste(right, group, sep = " + ")
  out[[name]] <- list(data = as.list(cases[[name]]), formula = formula,
                      reml = fit(formula, cases[[name]], TRUE), ml = fit(formula, cases[[name]], FALSE))
}
out$versions <- list(R = R.version.string, lme4 = as.character(packageVersion("lme4")),
                     lmerTest = as.character(packageVersion("lmerTest")))
write(toJSON(out, digits = NA, auto_unbox = TRUE, pretty = FALSE, na = "null"), file)
for (name in names(cases)) for (kind in c("reml", "ml"))
  cat(name, kind, unlist(out[[name]][[kind]][c("group_variance", "residual_variance", "slope_variance", "slope_covariance")]), "|", out[[name]][[kind]]$df, "\n")
