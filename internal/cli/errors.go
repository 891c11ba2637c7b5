package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"berth"
	"berth/internal/container"
	"berth/internal/demo"
	"berth/internal/image"
	"berth/internal/oci"
)

// Exit statuses, documented in the manual; exec has three more.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// An exit is an error with an exit status of its own. Its error may be nil:
// then all has been said.
type exit struct {
	status int
	err    error
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// usage gives an error the exit status of wrong usage, unless it has one.
func usage(err error) error {
	var e *exit
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &exit{exitUsage, err}
}

// needsRoot is all that a user without rights is told.
const needsRoot = "needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN): run with sudo"

// hints say what to do about a kind of error, in the commands whose path begins
// with command. The first that fits is shown.
var hints = []struct {
	is      error
	command string
	hint    string
}{
	{os.ErrPermission, "berth", "CAP_NET_ADMIN and CAP_SYS_ADMIN are needed, over this network namespace"},
	{berth.ErrDrifted, "berth", "somebody else changes what is Berth's: 'berth check' shows what, 'berth reconcile' mends it"},
	{berth.ErrUnsupported, "berth", "'berth info' shows what this kernel has"},
	{berth.ErrInUse, "berth network rm", "--force disconnects what is connected"},
	{berth.ErrConflict, "berth publish", "'berth port' shows who has which port; --replace takes one over from another sandbox"},
	{image.ErrNone, "berth", "'berth images' shows what there is, 'berth pull' brings one in"},
	{image.ErrElsewhere, "berth", "is the name right? one that is not public needs 'docker login' or 'podman login' first"},
	{oci.ErrAbsent, "berth", ""}, // all is said
	{container.ErrNone, "berth", "'berth ps -a' shows what there is"},
	{berth.ErrNotFound, "berth unpublish", "'berth port' shows what is published"},
	{berth.ErrNotFound, "berth port", "'berth port' shows what is published"},
	{berth.ErrNotFound, "berth", "'berth network ls' and 'berth sandbox ls' show what there is; a sandbox is also a name in /run/netns, path:PATH or pid:N"},
}

// report prints each error in one line, and what to do about it, and returns
// the exit status.
func report(w io.Writer, cmd *cobra.Command, err error) int {
	if err == nil {
		return exitOK
	}
	status := exitFailed
	var e *exit
	if errors.As(err, &e) {
		if status = e.status; e.err == nil {
			return status
		}
	}
	if errors.Is(err, demo.ErrFailed) { // it has said what
		return status
	}
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		fmt.Fprintf(w, "berth: %s\n", needsRoot)
		return status
	}
	path := "berth"
	if cmd != nil {
		path = cmd.CommandPath()
	}
	for _, one := range split(err) {
		fmt.Fprintf(w, "berth: %s\n", oneLine(one.Error()))
	}
	for _, h := range hints {
		// Of a command that exec cannot run, Berth knows nothing.
		if status < exitCannotRun && errors.Is(err, h.is) && (path == h.command || strings.HasPrefix(path, h.command+" ")) {
			if h.hint != "" {
				fmt.Fprintf(w, "hint: %s\n", h.hint)
			}
			break
		}
	}
	if status == exitUsage {
		fmt.Fprintf(w, "hint: '%s --help' shows how it is used\n", path)
	}
	return status
}

// split takes apart what errors.Join has joined.
func split(err error) (out []error) {
	switch e := err.(type) {
	case *exit:
		return split(e.err)
	case interface{ Unwrap() []error }:
		var text []string
		for _, one := range e.Unwrap() {
			text = append(text, one.Error())
			out = append(out, split(one)...)
		}
		// fmt.Errorf with several %w says more than the errors in it.
		if strings.Join(text, "\n") == err.Error() {
			return out
		}
	}
	return []error{err}
}

// oneLine keeps control characters, of a name that was typed, off the terminal.
func oneLine(s string) string {
	s = strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// arguments gives wrong arguments, of a command and all below it, the exit
// status of wrong usage.
func arguments(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, a []string) error {
			if err := check(c, a); err != nil {
				return usage(fmt.Errorf("%s: %w", strings.TrimPrefix(c.CommandPath(), "berth "), err))
			}
			return nil
		}
	} else if cmd.HasSubCommands() {
		cmd.Args = noCommand
		cmd.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	for _, c := range cmd.Commands() {
		arguments(c)
	}
}

// noCommand refuses a word that is no command, and offers what is like it.
func noCommand(c *cobra.Command, words []string) error {
	if len(words) == 0 {
		return nil
	}
	c.SuggestionsMinimumDistance = 2
	err := fmt.Errorf("no command %q of %s", words[0], c.CommandPath())
	if like := c.SuggestionsFor(words[0]); len(like) > 0 {
		err = fmt.Errorf("%w: is it %s?", err, strings.Join(like, " or "))
	}
	return usage(err)
}
