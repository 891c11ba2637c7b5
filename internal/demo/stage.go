package demo

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A stage is where demos are played, and their book-keeping.
type stage struct {
	ctx    context.Context
	o      options
	w      io.Writer
	in     *bufio.Reader
	pretty bool // signs for a terminal
	color  bool
	typed  bool // a person presses Enter, and the terminal shows it
	host   *host

	act    string
	told   bool   // that containers are left out
	table  string // the rules that answers have left out
	met    int
	failed []string
}

// perform plays inside the private host.
func perform(ctx context.Context, w io.Writer, o options, wanted []string) error {
	if err := elsewhere(o.inside); err != nil {
		return fmt.Errorf("demo: make a private host: %w", err)
	}
	// There is nothing to clean up: what there is ends with the process.
	defer context.AfterFunc(ctx, func() { os.Exit(1) })()
	s := &stage{ctx: ctx, o: o, w: w, in: bufio.NewReader(os.Stdin), pretty: isTerminal(os.Stdout), typed: isTerminal(os.Stdin)}
	s.color = s.pretty && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	var err error
	if o.group != "" && !o.joined {
		o.lacks = join(o, wanted).Error() // it returns only if it fails
		o.group = ""
	}
	s.o = o
	if s.host, err = newHost(o); err != nil {
		if forbidden(err) {
			return errNotAllowed
		}
		return fmt.Errorf("demo: make a private host: %w", err)
	}
	if err := s.acts(wanted); err != nil {
		return err
	}
	return s.end()
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// acts plays the wanted demos, all of them if none is named.
func (s *stage) acts(wanted []string) error {
	for _, a := range acts {
		if len(wanted) > 0 && !slices.Contains(wanted, a.name) {
			continue
		}
		s.act = "demo " + a.name
		s.print("\n%s\n", s.paint(bold, "=== Demo "+a.name+": "+a.title))
		if err := a.play(s); err != nil {
			return fmt.Errorf("%s: %w", s.act, err)
		}
	}
	return nil
}

// end sums up.
func (s *stage) end() error {
	if s.table != "" {
		s.say("The table that the scripts above have left out:")
		s.print("%s", s.paint(dim, s.table))
	}
	if len(s.failed) == 0 {
		s.print("\n%s\n", s.paint(green, fmt.Sprintf("%d expectations met", s.met)))
		return nil
	}
	s.print("\n%s\n", s.paint(red, fmt.Sprintf("%d of %d expectations failed:", len(s.failed), len(s.failed)+s.met)))
	for _, f := range s.failed {
		s.print("  %s\n", f)
	}
	return ErrFailed
}

const red, green, bold, dim = "31", "32", "1", "2"

func (s *stage) paint(color, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (s *stage) print(format string, args ...any) { fmt.Fprintf(s.w, format, args...) }

func (s *stage) say(text string) { s.print("\n%s\n", text) }

// show prints what a person would type, and waits where a speaker wants it.
func (s *stage) show(where, command string) {
	s.print("%s", s.paint(bold, where+"$ "+command))
	if s.o.step {
		_, err := s.in.ReadString('\n')
		if s.typed && err == nil {
			return
		}
	}
	s.print("\n")
}

// The rules of Berth's table in a script, from the first line to the last.
const tableOpens, tableCloses = "table inet berth {\n", "\n}\n"

// answer prints what a command says. The rules of Berth's table, which are the
// same each time and fill some screens, are kept for the end.
func (s *stage) answer(text string) {
	before, rest, opens := strings.Cut(text, tableOpens)
	body, after, closes := strings.Cut(rest, tableCloses)
	if opens && closes {
		s.table = tableOpens + body + tableCloses
		text = fmt.Sprintf("%stable inet berth { … %d lines, printed at the end … }\n%s", before, strings.Count(body, "\n")+1, after)
	}
	for line := range strings.Lines(text) {
		s.print("    %s\n", s.paint(dim, strings.TrimRight(line, "\n")))
	}
}

// changing are the commands that know --commands.
var changing = []string{"network create", "network rm", "network connect", "sandbox create", "sandbox rm", "publish ", "unpublish "}

// berth runs a command of Berth as it is typed and prints its answer.
func (s *stage) berth(args ...string) (string, error) {
	typed := quote(args)
	s.show("", "berth "+typed)
	if s.o.commands && slices.ContainsFunc(changing, func(c string) bool { return strings.HasPrefix(typed, c) }) {
		args = append(args[:len(args):len(args)], "--commands")
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(s.ctx, s.host.program, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := run(cmd)
	s.answer(out.String())
	if err != nil {
		err = fmt.Errorf("berth %s: %w: %s", typed, err, strings.TrimSpace(out.String()))
	}
	return strings.TrimSpace(out.String()), err
}

// quote writes arguments as a shell reads them.
func quote(args []string) string {
	var out []string
	for _, a := range args {
		if strings.ContainsAny(a, " {}") {
			a = "'" + a + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// must runs commands that have to succeed: one a line.
func (s *stage) must(lines ...string) error {
	for _, l := range lines {
		if _, err := s.berth(strings.Fields(l)...); err != nil {
			return err
		}
	}
	return nil
}

// expect records whether something is as it should be.
func (s *stage) expect(ok bool, what string) {
	if ok {
		s.met++
		s.print("  %s %s\n", s.paint(green, s.sign("✓", "ok  ")), what)
		return
	}
	s.failed = append(s.failed, s.act+": "+what)
	s.print("  %s %s\n", s.paint(red, s.sign("✗", "FAIL")), what)
}

func (s *stage) sign(pretty, plain string) string {
	if s.pretty {
		return pretty
	}
	return plain
}

// reaches expects that a try succeeds.
func (s *stage) reaches(what string, t try) {
	if err := t(enough); err != nil {
		s.expect(false, what+" ("+err.Error()+")")
		return
	}
	s.expect(true, what)
}

// misses expects that a try fails because nothing answers or no way leads
// there. Any other failure proves nothing.
func (s *stage) misses(what string, t try) {
	err := t(brief)
	s.expect(unreached(err), what+" ("+outcome(err)+")")
}

// refused expects that the other side says no.
func (s *stage) refused(what string, t try) {
	err := t(enough)
	s.expect(isRefusal(err), what+" ("+outcome(err)+")")
}

func outcome(err error) string {
	if err == nil {
		return "it answered"
	}
	return err.Error()
}
