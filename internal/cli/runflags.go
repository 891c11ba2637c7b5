package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"berth"
)

// runFlags are the flags that "run" and "create" share, as they are typed, in
// Docker's grammar. What they make is a wish: it has neither an id nor a time,
// and a name and a host name only if they were given.
type runFlags struct {
	name, cidFile, rootfs string
	pullFlags
	entrypoint       string
	interactive, tty bool
	env, envFiles    []string
	dir, user        string
	groups, ulimits  []string

	volumes, mounts, tmpfs, devices []string
	shmSize                         string
	readOnly, init                  bool
	pid                             string

	capAdd, capDrop, security, sysctls []string
	privileged                         bool

	limitFlags
	netFlags

	stopSignal  string
	stopTimeout int
	restart     string
	remove      bool
	logDriver   string
	logOptions  []string
	labelWords  []string
	labelFiles  []string
	typed       func(flag string) bool
}

// flags adds them, and by name those of Docker's that are refused.
func (r *runFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	r.typed = f.Changed
	f.SetInterspersed(false)      // what follows the first word is the container's
	f.Bool("help", false, "this") // without -h, which is --hostname
	f.StringVar(&r.rootfs, "rootfs", "", "in place of an image, the `directory` that is \"/\" inside, or \"host\": this host's programs, copy-on-write")
	r.pullFlags.flags(cmd)
	f.StringVar(&r.name, "name", "", "`name` of the container")
	f.StringVar(&r.cidFile, "cidfile", "", "write the id into this `file`, which must not be there")
	f.BoolVar(&r.remove, "rm", false, "remove the container when it has ended")
	f.StringVar(&r.restart, "restart", "", "start it again when it has ended: no, on-failure[:TIMES], always or unless-stopped (`policy`)")
	f.StringArrayVarP(&r.labelWords, "label", "l", nil, "a label, as `KEY=VALUE`")
	f.StringArrayVar(&r.labelFiles, "label-file", nil, "a `file` of labels, one a line")
	f.StringVar(&r.stopSignal, "stop-signal", "", "the `signal` that stops it (default: TERM)")
	f.IntVar(&r.stopTimeout, "stop-timeout", 0, "`seconds` until it is killed when it was told to stop (default: 10; -1: never)")
	f.StringVar(&r.logDriver, "log-driver", "", "k8s-file, the one there is (`driver`)")
	f.StringArrayVar(&r.logOptions, "log-opt", nil, "max-size=SIZE: older lines are let go (`option`; default 16m)")
	r.processFlags(cmd)
	r.rootFlags(cmd)
	r.limitFlags.flags(cmd)
	r.netFlags.flags(cmd)
	refuse(cmd, "run")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return failExec(flagError(err)) })
	for _, name := range []string{"name", "label", "log-opt", "stop-timeout"} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
	completeFlag(cmd, "restart", cobra.FixedCompletions([]cobra.Completion{"no", "on-failure", "always", "unless-stopped"}, cobra.ShellCompDirectiveNoFileComp))
}

func (r *runFlags) processFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&r.interactive, "interactive", "i", false, "keep standard input open")
	f.BoolVarP(&r.tty, "tty", "t", false, "with a terminal")
	f.StringArrayVarP(&r.env, "env", "e", nil, "set a variable, as `NAME=VALUE`; NAME alone takes it from here")
	f.StringArrayVar(&r.envFiles, "env-file", nil, "a `file` of variables, one a line")
	f.StringVar(&r.entrypoint, "entrypoint", "", "the `program`: the words behind the flags are its arguments")
	f.StringVarP(&r.dir, "workdir", "w", "", "working `directory` inside")
	f.StringVarP(&r.user, "user", "u", "", "who it runs as, NAME|UID[:GROUP|GID] (`user`)")
	f.StringArrayVar(&r.groups, "group-add", nil, "another `group`, name or number")
	f.StringArrayVar(&r.ulimits, "ulimit", nil, "a limit of each process, as `NAME=SOFT[:HARD]`")
	f.BoolVar(&r.init, "init", false, "with a process 1 that reaps and hands signals on")
	f.StringVar(&r.pid, "pid", "", "whose processes it sees: host, or container:NAME (`mode`)")
	for _, name := range []string{"env", "workdir", "user", "group-add", "ulimit", "pid"} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
}

func (r *runFlags) rootFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVarP(&r.volumes, "volume", "v", nil, "show a path of the host inside, as `SOURCE:TARGET[:ro]`")
	f.StringArrayVar(&r.mounts, "mount", nil, "the same in many words, as `type=bind,source=…,target=…`, or type=tmpfs")
	f.StringArrayVar(&r.tmpfs, "tmpfs", nil, "an empty file system in memory, as `TARGET[:size=64m]`")
	f.StringArrayVar(&r.devices, "device", nil, "a device node of the host, as `SOURCE[:TARGET][:rwm]`")
	f.StringVar(&r.shmSize, "shm-size", "", "`size` of /dev/shm (default: 64m)")
	f.BoolVar(&r.readOnly, "read-only", false, "\"/\" is read-only")
	f.StringArrayVar(&r.capAdd, "cap-add", nil, "a `capability` more, or ALL")
	f.StringArrayVar(&r.capDrop, "cap-drop", nil, "a `capability` less, or ALL")
	f.BoolVar(&r.privileged, "privileged", false, "with all capabilities and devices, and nothing covered")
	f.StringArrayVar(&r.security, "security-opt", nil, "no-new-privileges, seccomp=FILE|unconfined or apparmor=PROFILE (`option`)")
	f.StringArrayVar(&r.sysctls, "sysctl", nil, "a setting of its own kernel namespaces, as `NAME=VALUE`")
	for _, name := range []string{"cap-add", "cap-drop", "tmpfs", "shm-size", "sysctl"} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
}

// container turns the flags and what follows them into a wish.
func (r *runFlags) container(args []string) (berth.Container, error) {
	c := berth.Container{
		Name: r.name, ReadOnly: r.readOnly, Init: r.init, AutoRemove: r.remove, Hostname: r.hostname,
		Process: berth.Process{Command: args, Terminal: r.tty, Stdin: r.interactive, Groups: r.groups},
	}
	if r.name != "" {
		if err := berth.ValidName("container", r.name); err != nil {
			return c, err
		}
	}
	if err := r.files(&c, args); err != nil {
		return c, err
	}
	for _, part := range []func(*berth.Container) error{r.process, r.root, r.guard, r.life} {
		if err := part(&c); err != nil {
			return c, err
		}
	}
	err := r.limitFlags.apply(&c.Limits)
	if err != nil {
		return c, err
	}
	if c.Net, err = r.netFlags.net(c.Image != ""); err != nil {
		return c, err
	}
	if c.Expose, err = r.netFlags.paths(r.rootfs); err != nil {
		return c, err
	}
	return c, nil
}

// files reads where what it sees comes from: an image, the first word, or
// --rootfs.
func (r *runFlags) files(c *berth.Container, args []string) (err error) {
	switch {
	case r.rootfs == "" && !r.typed("rootfs"):
		if len(args) == 0 {
			return errors.New("no image: name one behind the flags, or give --rootfs DIR or --rootfs host")
		}
		c.Image, c.Process.Command = args[0], args[1:]
		return r.policy()
	case r.rootfs == "host":
		c.Rootfs = r.rootfs
	default:
		if c.Rootfs, err = absolute(r.rootfs); err != nil {
			return fmt.Errorf("--rootfs %w", err)
		}
	}
	for _, name := range []string{"pull", "platform"} {
		if r.typed(name) {
			return fmt.Errorf("--%s: with --rootfs there is no image", name)
		}
	}
	return nil
}

func (r *runFlags) process(c *berth.Container) (err error) {
	p := &c.Process
	if r.entrypoint != "" || c.Image != "" && r.typed("entrypoint") {
		p.Entrypoint = []string{r.entrypoint}
	}
	if c.Image == "" && len(p.Entrypoint)+len(p.Command) == 0 {
		return errors.New("no command: say what to run behind the flags")
	}
	if p.Env, err = environment(r.envFiles, r.env); err != nil {
		return err
	}
	if p.Ulimits, err = parseUlimits(r.ulimits); err != nil {
		return err
	}
	p.Dir = r.dir
	if p.User = r.user; p.User != "" {
		if err := checkUser(p.User); err != nil {
			return err
		}
	}
	for _, g := range r.groups {
		if g == "" || strings.ContainsAny(g, ":\n\x00") {
			return fmt.Errorf("--group-add %s: a group is wanted, by name or number", quoted(g))
		}
	}
	switch kind, name, with := strings.Cut(r.pid, ":"); {
	case r.pid == "" || r.pid == "host":
	case kind == "container" && with:
		if err := berth.ValidName("container", name); err != nil {
			return fmt.Errorf("--pid: %w", err)
		}
	default:
		return fmt.Errorf("--pid %s: host or container:NAME is wanted", quoted(r.pid))
	}
	c.PidMode = r.pid
	return nil
}

// checkUser reads NAME|UID[:GROUP|GID].
func checkUser(s string) error {
	user, group, with := strings.Cut(s, ":")
	if user == "" || with && group == "" || strings.ContainsAny(group, ":") || strings.ContainsAny(s, "\n\x00") {
		return fmt.Errorf("--user %s: NAME|UID[:GROUP|GID] is wanted, as www-data or 1000:1000", quoted(s))
	}
	return nil
}

func (r *runFlags) root(c *berth.Container) error {
	add := func(words []string, parse func(string) (berth.Mount, error)) error {
		for _, w := range words {
			m, err := parse(w)
			if err != nil {
				return err
			}
			c.Mounts = append(c.Mounts, m)
		}
		return nil
	}
	if err := errors.Join(add(r.volumes, parseVolume), add(r.mounts, parseMount), add(r.tmpfs, parseTmpfs)); err != nil {
		return err
	}
	for _, w := range r.devices {
		d, err := parseDevice(w)
		if err != nil {
			return err
		}
		c.Devices = append(c.Devices, d)
	}
	if r.shmSize == "" {
		return nil
	}
	var err error
	if c.ShmSize, err = parseSize(r.shmSize); err != nil {
		return fmt.Errorf("--shm-size %w", err)
	}
	return nil
}

// guard reads the flags about what it may do.
func (r *runFlags) guard(c *berth.Container) (err error) {
	s := &c.Security
	s.Privileged = r.privileged
	s.CapAdd, s.CapDrop = capabilities(r.capAdd), capabilities(r.capDrop)
	for _, w := range r.security {
		if err := parseSecurity(w, s); err != nil {
			return err
		}
	}
	c.Sysctls, err = parseSysctls(r.sysctls)
	return err
}

// life reads the flags about its beginning and its end.
func (r *runFlags) life(c *berth.Container) (err error) {
	if c.Labels, err = labels(r.labelFiles, r.labelWords); err != nil {
		return err
	}
	if c.Restart, err = parseRestart(r.restart); err != nil {
		return err
	}
	if r.remove && c.Restart.Policy != "" && c.Restart.Policy != "no" {
		return errors.New("--rm: what is removed when it has ended cannot be started again: give --restart or --rm")
	}
	if r.stopSignal != "" {
		s, err := parseSignal(r.stopSignal)
		if err != nil {
			return fmt.Errorf("--stop-signal %w", err)
		}
		c.StopSignal = signalWord(s)
	}
	if r.typed("stop-timeout") {
		if r.stopTimeout < -1 {
			return fmt.Errorf("--stop-timeout %d: seconds, or -1 for never", r.stopTimeout)
		}
		c.StopTimeout = &r.stopTimeout
	}
	if r.logDriver != "" && r.logDriver != "k8s-file" {
		return fmt.Errorf("--log-driver %s is refused: the monitor writes k8s-file", quoted(r.logDriver))
	}
	for _, w := range r.logOptions {
		key, value, _ := strings.Cut(w, "=")
		if key != "max-size" {
			return fmt.Errorf("--log-opt %s is refused: max-size=SIZE is the one there is; one file is kept", quoted(w))
		}
		if c.LogMaxSize, err = parseSize(value); err != nil {
			return fmt.Errorf("--log-opt max-size %w", err)
		}
	}
	return nil
}

// absolute makes a path of the host absolute.
func absolute(s string) (string, error) {
	if s == "" || strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("%s: a path is wanted", quoted(s))
	}
	return filepath.Abs(s)
}
