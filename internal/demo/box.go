package demo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/cgroup"
)

// The programs of demo 0, for a shell.
const (
	look = "set -- /proc/[0-9]*; echo pid $$, $# processes; uname -n"
	spin = "while :; do :; done"
	// hungry holds 48 MiB in a variable of the shell until a line comes.
	hungry = `x=$(head -c 48m /dev/zero | tr "\0" x); echo ${#x}; read line`
)

// box is demo 0.
func (s *stage) box() error {
	if !s.containers() {
		return nil
	}
	before := s.left()
	if err := s.inside(); err != nil {
		return err
	}
	if mode := s.host.mode; !mode.Has("cpu") || !mode.Has("memory") {
		// As where the kernel was started with cgroup_disable=memory.
		s.say("Limits are left out: of the controllers of control groups there are only: " + strings.Join(mode.Controllers(), " ") + ".")
		s.gone(before)
		return nil
	}
	if err := s.namespaces(); err != nil {
		return err
	}
	if err := s.memory(); err != nil {
		return err
	}
	if err := s.must("rm -f busy hungry", "ps -a"); err != nil {
		return err
	}
	s.gone(before)
	return nil
}

// sh runs a script of a shell on the private host.
func (s *stage) sh(script string) (string, error) {
	s.show("", "sh -c '"+script+"'")
	out, err := exec.CommandContext(s.ctx, "sh", "-c", script).CombinedOutput()
	s.answer(string(out))
	if err != nil {
		err = fmt.Errorf("sh -c '%s': %w", script, err)
	}
	return strings.TrimSpace(string(out)), err
}

// inside runs one program outside and inside.
func (s *stage) inside() error {
	out, err := s.sh(look)
	if err != nil {
		return err
	}
	in, err := s.berth("run", "--rm", "--network", "none", "--hostname", "box", "--rootfs", "host", "sh", "-c", look)
	if err != nil {
		return err
	}
	s.byHand("unshare --fork --pid --mount-proc --uts --ipc --net --cgroup sh -c 'hostname box; " + look + "'")
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	o, i := strings.Split(out, "\n"), strings.Split(in, "\n")
	if len(o) != 2 || len(i) != 2 {
		return fmt.Errorf("two lines are wanted of %q and %q", out, in)
	}
	s.expect(i[0] == "pid 1, 1 processes" && o[0] != i[0], "outside it is one of several processes; inside it is process 1 and sees no other")
	s.expect(o[1] == host && i[1] == "box", "inside it has a host name of its own")
	const file = "/usr/of-the-container"
	in, err = s.berth("run", "--rm", "--network", "none", "--rootfs", "host", "sh", "-c", "echo mine >"+file+"; cat "+file)
	if err != nil {
		return err
	}
	s.show("", "ls "+file)
	_, err = os.Lstat(file)
	s.expect(in == "mine" && errors.Is(err, os.ErrNotExist), "the programs are the host's; what it writes is its own")
	return nil
}

// namespaces shows what a container is to the kernel, and measures its processor
// time beside that of the same program outside.
func (s *stage) namespaces() error {
	id, err := s.berth("run", "-d", "--name=busy", "--network=none", "--cpus=0.25", "--rootfs=host", "sh", "-c", spin)
	if err != nil {
		return err
	}
	s.cpuByHand()
	pid, err := s.inspect("{{.State.Pid}}", "busy")
	if err != nil {
		return err
	}
	s.show("", "ls -l /proc/"+pid+"/ns")
	own := 0
	kinds := []string{"pid", "mnt", "uts", "ipc", "net", "cgroup"}
	for _, ns := range kinds {
		theirs, err1 := os.Readlink("/proc/" + pid + "/ns/" + ns)
		ours, err2 := os.Readlink("/proc/self/ns/" + ns)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		s.answer(theirs + ", the host's is " + ours)
		if theirs != ours {
			own++
		}
	}
	s.expect(own == len(kinds), "for the host it is a process as any other, in six namespaces of its own")
	theirs, err1 := mountIDs(pid)
	ours, err2 := mountIDs("self")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	s.show("", "wc -l /proc/"+pid+"/mountinfo /proc/self/mountinfo")
	s.answer(fmt.Sprintf("%d\n%d", len(theirs), len(ours)))
	common := slices.ContainsFunc(theirs, func(id string) bool { return slices.Contains(ours, id) })
	s.expect(!common && len(theirs) > 0, "none of its mounts is one of the host's")
	return s.processor(id)
}

// mountIDs are the numbers of the mounts that a process sees, which are the
// kernel's own.
func mountIDs(pid string) (ids []string, err error) {
	b, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	for line := range strings.Lines(string(b)) {
		ids = append(ids, strings.Fields(line)[0])
	}
	return ids, err
}

// cpuByHand says how a limit of the processor is set.
func (s *stage) cpuByHand() {
	if s.host.mode.Version == cgroup.V2 {
		s.byHand("mkdir /sys/fs/cgroup/busy", "echo 25000 100000 >/sys/fs/cgroup/busy/cpu.max", "echo $$ >/sys/fs/cgroup/busy/cgroup.procs")
		return
	}
	s.byHand("mkdir /sys/fs/cgroup/cpu/busy", "echo 25000 >/sys/fs/cgroup/cpu/busy/cpu.cfs_quota_us", "echo $$ >/sys/fs/cgroup/cpu/busy/cgroup.procs")
}

// processor measures how many processors a container and the same program
// outside have. Where the machine has much else to do, it takes a few seconds
// until there is more to have than the limit.
func (s *stage) processor(id string) error {
	group := s.host.mode.Group("/berth/" + id)
	s.show("", "sh -c '"+spin+"' & sleep 1; kill $!")
	cmd := exec.CommandContext(s.ctx, "sh", "-c", spin)
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill() // it runs, for it has no end
		_ = cmd.Wait()         // it was killed
	}()
	var most, inside, outside float64
	for range 10 {
		was, err := s.used(group, cmd.Process.Pid)
		if err != nil {
			return err
		}
		start := time.Now()
		time.Sleep(time.Second)
		is, err := s.used(group, cmd.Process.Pid)
		if err != nil {
			return err
		}
		long := time.Since(start).Seconds()
		inside, outside = (is[0]-was[0]).Seconds()/long, (is[1]-was[1]).Seconds()/long
		most = max(most, inside)
		if outside > inside {
			break
		}
	}
	s.expect(inside > 0 && most < 0.35, fmt.Sprintf("in a second, of 0.25 processors, it has had %.2f", inside))
	s.expect(outside > inside, fmt.Sprintf("and the same program outside, in the same second, %.2f", outside))
	return nil
}

// used returns the processor time of a group and of a process.
func (s *stage) used(group cgroup.Group, pid int) (used [2]time.Duration, err error) {
	stats, err := group.Stats()
	if err != nil {
		return used, err
	}
	if stats.CPU == nil {
		return used, errors.New("this kernel does not count the processor time of a control group")
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		return used, err
	}
	ns, err := strconv.ParseInt(strings.Fields(string(b) + " 0")[0], 10, 64)
	return [2]time.Duration{stats.CPU.Usage, time.Duration(ns)}, err
}

// memory runs one program outside and inside, where it wants too much.
func (s *stage) memory() error {
	was, err := s.inspect("{{.State.Status}} {{.State.Pid}}", "busy")
	if err != nil {
		return err
	}
	s.show("", "sh -c '"+hungry+"'")
	outside := exec.CommandContext(s.ctx, "sh", "-c", hungry)
	line, err1 := outside.StdinPipe()
	says, err2 := outside.StdoutPipe()
	if err := errors.Join(err1, err2, outside.Start()); err != nil {
		return err
	}
	said, err := bufio.NewReader(says).ReadString('\n')
	if err != nil {
		return err
	}
	s.answer(said)
	s.expect(said == fmt.Sprintln(48<<20), "outside the program gets 48 MiB, and keeps them")
	if err := s.starve(); err != nil {
		return err
	}
	is, err := s.inspect("{{.State.Status}} {{.State.Pid}}", "busy")
	if err != nil {
		return err
	}
	s.expect(is == was, "the other container is unharmed")
	_, err = io.WriteString(line, "end\n")
	err = errors.Join(err, outside.Wait())
	s.expect(err == nil, "and so is the host: the program outside goes on to its end"+because(err))
	return nil
}

// starve runs the program in a container that has not enough memory for it.
func (s *stage) starve() error {
	run := []string{"run", "--name=hungry", "--network=none", "--memory=32m"}
	if s.host.mode.Swap {
		run = append(run, "--memory-swap=32m")
	}
	_, err := s.berth(append(run, "--rootfs=host", "sh", "-c", hungry)...)
	s.memoryByHand()
	var ended *exec.ExitError
	s.expect(errors.As(err, &ended) && ended.ExitCode() == 137, "inside, with 32 MiB, it is killed: exit status 137")
	state, err := s.inspect("{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", "hungry")
	if err != nil {
		return err
	}
	s.expect(state == "exited 137 true", "by the kernel, for want of memory in its control group")
	return nil
}

// memoryByHand says how a limit of memory is set.
func (s *stage) memoryByHand() {
	if s.host.mode.Version == cgroup.V2 {
		s.byHand("mkdir /sys/fs/cgroup/hungry", "echo 32M >/sys/fs/cgroup/hungry/memory.max", "echo $$ >/sys/fs/cgroup/hungry/cgroup.procs")
		return
	}
	s.byHand("mkdir /sys/fs/cgroup/memory/hungry", "echo 32M >/sys/fs/cgroup/memory/hungry/memory.limit_in_bytes", "echo $$ >/sys/fs/cgroup/memory/hungry/cgroup.procs")
}
