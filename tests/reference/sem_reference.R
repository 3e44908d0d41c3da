# Writes sem_reference.json: data, models and fits of lavaan.
# Rscript sem_reference.R [output [case ...]]   (in this directory; R 4.2.2, lavaan 0.6-14)
suppressMessages({library(lavaan); library(jsonlite)})
arguments <- commandArgs(TRUE)
output <- c(arguments, "sem_reference.json")[1]

set.seed(21)
n <- 180
cst <- rbeta(n, 1, 4)
ipsi <- 2 + 6 * cst + rnorm(n, 0, 3)
motor <- 0.8 - 0.6 * cst - 0.02 * ipsi + rnorm(n, 0, 0.2)
contra <- -1 + 3 * motor + rnorm(n, 0, 3)
g <- rnorm(n)
a1 <- g + rnorm(n, 0, .5); a2 <- .8 * g + rnorm(n, 0, .6); a3 <- .6 * g + rnorm(n, 0, .7)
out1 <- .5 * g + .3 * cst + rnorm(n)
simulated <- data.frame(cst, ipsi, motor, contra, a1, a2, a3, out1)

# Missing at random: what is missing depends on what is observed, and a few at random.
gaps <- simulated
gaps$contra[gaps$cst > 0.3 & runif(n) < 0.5] <- NA
gaps$motor[runif(n) < 0.15] <- NA
gaps_x <- gaps
gaps_x$cst[runif(n) < 0.1] <- NA
gaps_x$a2[gaps_x$a1 > 0.5 & runif(n) < 0.4] <- NA
gaps_x[7, ] <- NA

school <- HolzingerSwineford1939[, c("ageyr", "agemo", "sex", paste0("x", 1:9))]
school$grade <- HolzingerSwineford1939$grade - 7
school$grade[is.na(school$grade)] <- 0
school_gaps <- school
school_gaps$x5[school_gaps$x1 <= quantile(school_gaps$x1, .3) & runif(301) < 0.6] <- NA
age <- school$ageyr + school$agemo / 12
school_gaps$x9[age <= quantile(age, .3)] <- NA
school_gaps$x2[runif(301) < 0.2] <- NA

data <- list(simulated = simulated, gaps = gaps, gaps_x = gaps_x, democracy = PoliticalDemocracy,
             school = school, school_gaps = school_gaps)
democracy <- "ind60 =~ x1 + x2 + x3
dem60 =~ y1 + y2 + y3 + y4
dem65 =~ y5 + y6 + y7 + y8
dem60 ~ ind60
dem65 ~ ind60 + dem60
y1 ~~ y5
y2 ~~ y4 + y6
y3 ~~ y7
y4 ~~ y8
y6 ~~ y8"
equal <- "# loadings equal over time, and the effect through democracy in 1960
ind60 =~ x1 + x2 + x3
dem60 =~ y1 + a*y2 + b*y3 + c*y4
dem65 =~ y5 + a*y6 +
         b*y7 + c*y8
dem60 ~ first*ind60
dem65 ~ direct*ind60 + second*dem60
y1 ~~ y5; y2 ~~ y4 + y6; y3 ~~ y7; y4 ~~ y8; y6 ~~ y8
indirect := first*second
total := direct + first*second
share := (first*second) / total"
factors <- "visual =~ x1 + x2 + x3\ntextual =~ x4 + x5 + x6\nspeed =~ x7 + x8 + x9"
mediation <- "motor ~ c*cst + b*ipsi\ncontra ~ m*motor + cst + ipsi\nipsi ~ a*cst
indirect := a*b\nfar := a*b*m\ntotal := c + indirect"
cases <- list(
  default = list("simulated", "motor ~ cst + ipsi\ncontra ~ motor + cst + ipsi\nipsi ~ cst"),
  restricted = list("simulated", "motor ~ cst + ipsi\ncontra ~ motor\nipsi ~ cst"),
  no_link = list("simulated",
    "motor ~ cst + ipsi\ncontra ~ cst + ipsi\nipsi ~ cst\nmotor ~~ 0*contra"),
  leaves = list("simulated", "motor ~ cst\ncontra ~ ipsi\nout1 ~ cst"),
  latent = list("simulated", "dam =~ a1 + a2 + a3\nout1 ~ dam + cst\ndam ~ cst"),
  mediation = list("simulated", mediation),
  democracy = list("democracy", democracy),
  equal = list("democracy", equal),
  factors = list("school", factors),
  unit_variance = list("school", "visual =~ NA*x1 + x2 + x3\nvisual ~~ 1*visual
speed =~ x7 + 0.9*x8 + x9\nx2 ~~ x7\nvisual ~~ 0*speed\nx1 ~ ageyr\nx7 ~ ageyr + sex"),
  second_order = list("school", paste0(factors, "\nability =~ visual + textual + speed")),
  means = list("school", "x4 ~ 1 + one*ageyr\nx5 ~ 1 + one*ageyr + x4\nx6 ~ 0*1 + x5\nx9 ~ x6"),
  random_x = list("school", "x4 ~ ageyr + sex\nx5 ~ x4\nageyr ~~ sex\nageyr ~~ ageyr"),
  fiml_factors = list("school_gaps", factors, "fiml"),
  fiml_path = list("gaps", mediation, "fiml"),
  fiml_restricted = list("gaps", "motor ~ cst + ipsi\ncontra ~ motor\nipsi ~ cst", "fiml"),
  fiml_latent_x = list("gaps_x", "dam =~ a1 + a2 + a3\nmotor ~ dam + cst\ndam ~ cst\ncontra ~ motor",
    "fiml"),
  fiml_many_x = list("gaps_x", "motor ~ cst + a1 + a2\ncontra ~ motor + cst", "fiml")
)
measures <- c("chisq", "df", "pvalue", "cfi", "tli", "rmsea", "rmsea.ci.lower", "rmsea.ci.upper",
              "srmr", "aic", "bic", "logl", "npar")
name <- function(p) ifelse(p$op == "~1", paste(p$lhs, "~ 1"), paste(p$lhs, p$op, p$rhs))
fit <- function(case) {
  d <- data[[case[[1]]]]
  missing <- if (length(case) > 2) case[[3]] else "listwise"
  run <- function(...) suppressWarnings(sem(case[[2]], d, missing = missing,
    # exogenous variables with gaps are estimated, others as given
    fixed.x = !(missing == "fiml" && anyNA(d$cst)), se = "standard",
    em.h1.iter.max = 20000L, em.h1.tol = 1e-13, ...))
  m <- run(control = list(rel.tol = 1e-10))
  # once more from there: the first solution stops up to 9e-5 early
  m <- run(start = m, optim.method = "BFGS", control = list(reltol = 1e-16, maxit = 10000L))
  if (!lavInspect(m, "converged")) stop("lavaan did not converge: ", case[[2]])
  e <- parameterEstimates(m)
  s <- standardizedSolution(m)
  keep <- !(e$lhs %in% lavNames(m, "ov.x") & e$op %in% c("~~", "~1"))
  if (missing == "fiml" && anyNA(d$cst)) keep <- TRUE | keep
  out <- list(data = case[[1]], model = case[[2]], missing = missing, path = name(e)[keep],
    estimate = e$est[keep], se = e$se[keep], std = s$est.std[keep], std_se = s$se[keep],
    n = lavInspect(m, "nobs"), fit = as.list(fitMeasures(m, measures)))
  if (out$fit$df > 0) {
    i <- modificationIndices(m)
    out$modification <- list(path = name(i), mi = i$mi, epc = i$epc, std_epc = i$sepc.all)
  }
  out
}
out <- lapply(if (length(arguments) > 1) cases[arguments[-1]] else cases, fit)
out$data <- lapply(data, as.list)
out$versions <- list(R = R.version.string, lavaan = as.character(packageVersion("lavaan")))
write(toJSON(out, digits = NA, auto_unbox = TRUE, na = "null"), output)
