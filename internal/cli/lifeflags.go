package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth/internal/oci"
)

// ttyFlags are the flags of commands that show a container on this terminal.
type ttyFlags struct {
	keys     string
	sigProxy bool
}

func (a *ttyFlags) keysFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.keys, "detach-keys", "ctrl-p,ctrl-q", "the `keys` that detach from its terminal")
	completeFlag(cmd, "detach-keys", cobra.NoFileCompletions)
}

func (a *ttyFlags) flags(cmd *cobra.Command) {
	a.keysFlag(cmd)
	cmd.Flags().BoolVar(&a.sigProxy, "sig-proxy", true, "hand signals on to the process")
}

// detachKeys are the bytes that detach.
func (a *ttyFlags) detachKeys() (oci.DetachKeys, error) { return parseKeys(a.keys) }

// runOnlyFlags are those of "run" that "create" has not.
type runOnlyFlags struct {
	detach bool
	ttyFlags
}

func (r *runOnlyFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&r.detach, "detach", "d", false, "in the background: the answer is the id")
	r.ttyFlags.flags(cmd)
}

// attachFlags are the flags of "attach".
type attachFlags struct {
	ttyFlags
	noStdin bool
}

func (a *attachFlags) flags(cmd *cobra.Command) {
	a.ttyFlags.flags(cmd)
	cmd.Flags().BoolVar(&a.noStdin, "no-stdin", false, "without standard input")
}

// startFlags are the flags of "start".
type startFlags struct {
	ttyFlags
	attach, interactive bool
}

func (s *startFlags) flags(cmd *cobra.Command) {
	s.keysFlag(cmd)
	cmd.Flags().BoolVarP(&s.attach, "attach", "a", false, "show its output and hand signals on")
	cmd.Flags().BoolVarP(&s.interactive, "interactive", "i", false, "hand standard input in")
	refuse(cmd, "start")
}

// execFlags are the flags of "exec".
type execFlags struct {
	ttyFlags
	detach, interactive, tty, privileged bool
	env, envFiles                        []string
	dir, user                            string
}

func (x *execFlags) flags(cmd *cobra.Command) {
	x.keysFlag(cmd)
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&x.detach, "detach", "d", false, "in the background")
	f.BoolVarP(&x.interactive, "interactive", "i", false, "hand standard input in")
	f.BoolVarP(&x.tty, "tty", "t", false, "with a terminal")
	f.BoolVar(&x.privileged, "privileged", false, "with all capabilities")
	f.StringArrayVarP(&x.env, "env", "e", nil, "set a variable, as `NAME=VALUE`; NAME alone takes it from here")
	f.StringArrayVar(&x.envFiles, "env-file", nil, "a `file` of variables, one a line")
	f.StringVarP(&x.dir, "workdir", "w", "", "working `directory` inside")
	f.StringVarP(&x.user, "user", "u", "", "who it runs as, NAME|UID[:GROUP|GID] (`user`)")
	for _, name := range []string{"env", "workdir", "user"} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
}

// environment is what is set of it.
func (x *execFlags) environment() ([]string, error) { return environment(x.envFiles, x.env) }

// updateFlags are the flags of "update".
type updateFlags struct {
	limitFlags
	restart string
}

func (u *updateFlags) flags(cmd *cobra.Command) {
	u.limitFlags.flags(cmd)
	u.lifts = true
	cmd.Flags().StringVar(&u.restart, "restart", "", "start it again when it has ended: no, on-failure[:TIMES], always or unless-stopped (`policy`)")
	completeFlag(cmd, "restart", cobra.NoFileCompletions)
	refuse(cmd, "update")
}

// logsFlags are the flags of "logs".
type logsFlags struct {
	follow, times      bool
	since, until, tail string
}

func (l *logsFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&l.follow, "follow", "f", false, "go on until it ends")
	f.BoolVarP(&l.times, "timestamps", "t", false, "each line with its time")
	f.StringVar(&l.since, "since", "", "not what is older: a `time` as 2006-01-02T15:04:05Z, or how long ago, as 10m")
	f.StringVar(&l.until, "until", "", "not what is newer: a `time`, or how long ago")
	f.StringVarP(&l.tail, "tail", "n", "all", "the last lines only, a `number`")
	for _, name := range []string{"since", "until", "tail"} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
	refuse(cmd, "logs")
}

// lines is how many of the last lines are wanted; -1: all.
func (l *logsFlags) lines() (int, error) {
	if l.tail == "all" {
		return -1, nil
	}
	n, err := strconv.Atoi(l.tail)
	if err != nil {
		return 0, fmt.Errorf("--tail %s: a number or all is wanted", quoted(l.tail))
	}
	return max(n, -1), nil // less than nothing is all, as in Docker
}

// times of --since, from the finest to the coarsest. What has no zone is in
// that of this machine.
var timeLayouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04Z07:00", "2006-01-02T15:04", "2006-01-02Z07:00", "2006-01-02",
}

// parseTime reads a time, seconds since 1970, or how long before now.
func parseTime(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && s != "0" {
		return now.Add(-d), nil
	}
	whole, part, _ := strings.Cut(s, ".")
	if sec, err := strconv.ParseInt(whole, 10, 40); err == nil && strings.Trim(part, "0123456789") == "" && len(part) <= 9 {
		ns, _ := strconv.ParseInt((part + "000000000")[:9], 10, 64)
		return time.Unix(sec, ns), nil
	}
	for _, layout := range timeLayouts {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--%s %s: a time is wanted, as 2006-01-02T15:04:05Z, or how long ago, as 10m", flag, quoted(s))
}

// stopFlags are the flags of "stop" and "restart".
type stopFlags struct {
	signalWord string
	timeout    int
	typed      func(flag string) bool
}

func (s *stopFlags) flags(cmd *cobra.Command) {
	s.typed = cmd.Flags().Changed
	cmd.Flags().StringVarP(&s.signalWord, "signal", "s", "", "the `signal` that stops it (default: its own, else TERM)")
	cmd.Flags().IntVarP(&s.timeout, "timeout", "t", 0, "`seconds` until it is killed (default: its own, else 10; -1: never)")
	cmd.Flags().SetNormalizeFunc(dockerNames)
	completeFlag(cmd, "timeout", cobra.NoFileCompletions)
}

// seconds until it is killed; nil: as the container says.
func (s *stopFlags) seconds() (*int, error) {
	switch {
	case !s.typed("timeout"):
		return nil, nil
	case s.timeout < -1:
		return nil, fmt.Errorf("--timeout %d: seconds, or -1 for never", s.timeout)
	}
	return &s.timeout, nil
}

// signal is the one that was typed, or 0.
func (s *stopFlags) signal() (unix.Signal, error) { return signalFlag(s.signalWord) }

// killFlags are the flags of "kill".
type killFlags struct{ signalWord string }

func (k *killFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&k.signalWord, "signal", "s", "KILL", "the `signal`, by name or number")
	completeFlag(cmd, "signal", cobra.NoFileCompletions)
}

func (k *killFlags) signal() (unix.Signal, error) { return signalFlag(k.signalWord) }

func signalFlag(s string) (unix.Signal, error) {
	if s == "" {
		return 0, nil
	}
	n, err := parseSignal(s)
	if err != nil {
		return 0, fmt.Errorf("--signal %w", err)
	}
	return n, nil
}

// removeFlags are the flags of "rm".
type removeFlags struct{ force bool }

func (r *removeFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&r.force, "force", "f", false, "kill it if it runs")
	cmd.Flags().BoolP("volumes", "v", false, "as Docker's: there are none")
	refuse(cmd, "rm")
}

// statsFlags are the flags of "stats".
type statsFlags struct {
	list
	all, once bool
}

func (s *statsFlags) flags(cmd *cobra.Command) {
	s.formatFlag(cmd)
	cmd.Flags().BoolVarP(&s.all, "all", "a", false, "those too that do not run")
	cmd.Flags().BoolVar(&s.once, "no-stream", false, "once, not until it is interrupted")
	cmd.Flags().BoolVar(&s.noTrunc, "no-trunc", false, "whole ids")
}

// pruneFlags are the flags of "prune".
type pruneFlags struct{ filters []string }

func (p *pruneFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolP("force", "f", false, "as Docker's: there is no question to be answered")
	cmd.Flags().StringArrayVar(&p.filters, "filter", nil, "only what matches `KEY=VALUE`, with a key of: "+containerFilters.keys())
}
