package demo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/internal/cgroup"
)

// halves plays an act with sandboxes and then with containers.
func halves(sandboxes, containers func(*stage) error) func(*stage) error {
	return func(s *stage) error {
		if err := sandboxes(s); err != nil || !s.containers() {
			return err
		}
		s.say("The same with containers:")
		return containers(s)
	}
}

// containers reports whether containers are played, and says once why not.
func (s *stage) containers() bool {
	if s.o.group == "" && !s.told {
		s.say("Containers are left out: " + s.o.lacks + ".")
		s.told = true
	}
	return s.o.group != ""
}

// byHand shows what would be typed without Berth.
func (s *stage) byHand(lines ...string) {
	if s.o.commands {
		s.answer(strings.Join(lines, "\n"))
	}
}

// inspect asks for something of a container.
func (s *stage) inspect(format, name string) (string, error) {
	return s.berth("inspect", "-f", format, name)
}

// left is what there is of containers: processes, mounts, control groups and
// files.
func (s *stage) left() (all []string) {
	for _, pattern := range []string{"/proc/[0-9]*", "/run/berth*/containers/*", "/run/berth/exits/*", "/run/berth/runtime/*", "/run/netns/*"} {
		found, _ := filepath.Glob(pattern) // the patterns are good
		all = append(all, found...)
	}
	for _, mount := range s.host.mode.Mounts {
		for _, group := range []string{"/berth/*", cgroup.MonitorGroup + "/*"} {
			found, _ := filepath.Glob(mount + group)
			for _, f := range found {
				if i, err := os.Stat(f); err == nil && i.IsDir() {
					all = append(all, f)
				}
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts") // it is always there
	all = append(all, strings.Split(string(mounts), "\n")...)
	slices.Sort(all)
	return slices.Compact(all)
}

// gone expects that nothing is left of containers but what was there before.
func (s *stage) gone(before []string) {
	var more []string
	// A process that has ended is there until its parent, the first one of the
	// private host, has noticed.
	for end := time.Now().Add(enough); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		more = slices.DeleteFunc(s.left(), func(l string) bool { return slices.Contains(before, l) })
		if len(more) == 0 {
			break
		}
	}
	for _, l := range more {
		s.answer(l)
	}
	s.expect(len(more) == 0, "no process, mount, control group or file of a container is left")
}

// isolationOfContainers is the other half of demo 3.
func (s *stage) isolationOfContainers() error {
	before := s.left()
	if err := s.must("network create dummy1 dummy2"); err != nil {
		return err
	}
	s.bridges()
	for _, name := range []string{"dummy1", "dummy2"} {
		if err := s.must("run --network=" + name + " --name=" + name + " -dit --rootfs host sh"); err != nil {
			return err
		}
		pid, err := s.inspect("{{.State.Pid}}", name)
		if err != nil {
			return err
		}
		here, err1 := os.Stat("/run/netns/" + name)
		there, err2 := os.Stat("/proc/" + pid + "/ns/net")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		s.expect(os.SameFile(here, there), "its network namespace is the sandbox "+name)
	}
	if err := s.must("ps"); err != nil {
		return err
	}
	if err := s.border(); err != nil {
		return err
	}
	if err := s.strike("rm -f dummy1 dummy2", "network rm dummy1 dummy2"); err != nil {
		return err
	}
	s.gone(before)
	return nil
}

// portsOfContainers is the other half of demo 4.
func (s *stage) portsOfContainers() error {
	before := s.left()
	server, err := s.webServer()
	if err != nil {
		return err
	}
	if err := s.serving("run -p 8888:80 --name=nginx -d " + server); err != nil {
		return err
	}
	if err := s.published(); err != nil {
		return err
	}

	s.say("Not published:")
	if err := s.must("stop nginx", "rm nginx"); err != nil {
		return err
	}
	s.unpublished()
	if err := s.serving("run --name=nginx -d " + server); err != nil {
		return err
	}
	addr, err := s.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "nginx")
	if err != nil {
		return err
	}
	s.show("", "curl "+addr+":80")
	s.reaches("the page, at the container's own address", curl("", addr+":80"))
	s.unpublished()

	s.say("Published afterwards, while it runs. Docker has no command for this.")
	const run = "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}"
	was, err := s.inspect(run, "nginx")
	if err != nil {
		return err
	}
	if err := s.must("publish nginx 8888:80"); err != nil {
		return err
	}
	if err := s.published(); err != nil {
		return err
	}
	is, err := s.inspect(run, "nginx")
	if err != nil {
		return err
	}
	s.expect(is == was, "the container was never restarted")
	if err := s.must("check"); err != nil {
		return err
	}
	s.expect(true, "the kernel is what the store wants")
	if err := s.strike("rm -f nginx", "network rm bridge"); err != nil {
		return err
	}
	s.gone(before)
	return nil
}

// serving runs a web server and waits until it listens.
func (s *stage) serving(run string) error {
	if err := s.must(run); err != nil {
		return err
	}
	look := curl("nginx", "127.0.0.1:80")
	for end := time.Now().Add(2 * enough); ; time.Sleep(5 * time.Millisecond) {
		err := look(enough)
		if err == nil {
			return nil
		}
		if time.Now().After(end) || !isRefusal(err) {
			return fmt.Errorf("the web server does not answer: %w", err)
		}
	}
}

// webServer is what follows the name of a container that serves the page: nginx,
// or this program where there is none.
func (s *stage) webServer() (string, error) {
	run := "-v " + ownFiles + ":/srv:ro --rootfs host "
	if _, err := exec.LookPath("nginx"); err != nil {
		return run + "/srv/berth demo --" + serveFlag + " :80", nil
	}
	config := fmt.Sprintf(`daemon off;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path /tmp/body;
	proxy_temp_path /tmp/proxy;
	fastcgi_temp_path /tmp/fastcgi;
	uwsgi_temp_path /tmp/uwsgi;
	scgi_temp_path /tmp/scgi;
	server {
		listen 80;
		add_header %s $remote_addr;
		location / { return 200 "%s"; }
	}
}
`, clientHeader, strings.TrimSpace(page)+`\n`)
	return run + "nginx -c /srv/nginx.conf", os.WriteFile(ownFiles+"/nginx.conf", []byte(config), 0o644)
}
