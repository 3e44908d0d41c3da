# Writes sem_reference.json: data and fits of lavaan.
# Rscript sem_reference.R   (in this directory; R 4.2.2, lavaan 0.6-14)
suppressMessages({library(lavaan); library(jsonlite)})
set.seed(21)
n <- 180
cst <- rbeta(n, 1, 4)
ipsi <- 2 + 6 * cst + rnorm(n, 0, 3)
motor <- 0.8 - 0.6 * cst - 0.02 * ipsi + rnorm(n, 0, 0.2)
contra <- -1 + 3 * motor + rnorm(n, 0, 3)
g <- rnorm(n)
a1 <- g + rnorm(n, 0, .5); a2 <- .8 * g + rnorm(n, 0, .6); a3 <- .6 * g + rnorm(n, 0, .7)
out1 <- .5 * g + .3 * cst + rnorm(n)
d <- data.frame(cst, ipsi, motor, contra, a1, a2, a3, out1)
models <- list(
  default = "motor ~ cst + ipsi\ncontra ~ motor + cst + ipsi\nipsi ~ cst",
  restricted = "motor ~ cst + ipsi\ncontra ~ motor\nipsi ~ cst",
  no_link = "motor ~ cst + ipsi\ncontra ~ cst + ipsi\nipsi ~ cst\nmotor ~~ 0*contra",
  latent = "dam =~ a1 + a2 + a3\nout1 ~ dam + cst\ndam ~ cst"
)
fit <- function(text) {
  m <- sem(text, d, fixed.x = TRUE, control = list(rel.tol = 1e-10))
  p <- parameterEstimates(m)
  s <- standardizedSolution(m)
  keep <- p$op %in% c("~", "=~")
  path <- ifelse(p$op == "~", paste(p$lhs, "~", p$rhs), paste(p$lhs, "=~", p$rhs))
  list(model = text, path = path[keep], estimate = p$est[keep], se = p$se[keep],
       std = s$est.std[keep],
       fit = as.list(fitMeasures(m, c("chisq", "df", "pvalue", "cfi", "tli", "rmsea",
         "rmsea.ci.lower", "rmsea.ci.upper", "srmr", "aic", "bic", "logl"))))
}
out <- lapply(models, fit)
out$data <- as.list(d)
out$versions <- list(R = R.version.string, lavaan = as.character(packageVersion("lavaan")))
write(toJSON(out, digits = NA, auto_unbox = TRUE, na = "null"), "sem_reference.json")
str(out$restricted$fit); str(out$default$fit)
